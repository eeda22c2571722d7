"""Figures of matplotlib in the style of reports, as SVG that takes its colours from a page, or as files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ..files import replacing


@dataclass(frozen=True)
class Colours:
    """Colours of a picture."""

    ink: str
    line: str
    dense: str
    small: str
    warn: str
    muted: str


# Stand for the colours of the page, light or dark: `svg` puts its variables in their place.
PAGE = Colours("#010101", "#020202", "#030303", "#040404", "#050505", "#060606")
WHITE = Colours("#1a2230", "#d5dce5", "#7b8694", "#0b62c4", "#b3541e", "#566172")  # of pictures in files
FONT = 10
DATELESS: dict[str, dict[str, None]] = {".svg": {"Date": None}, ".png": {}}
_numbers = count()


@contextmanager
def figure(width: float, height: float, colours: Colours) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes in the style of reports; sizes in inches.

    Raises:
        ImportError: without matplotlib, with the command that installs it.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"pictures need {error.name}: pip install 'rankwise[report]'") from error

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "rankwise",
        "font.size": FONT,
        "font.family": "sans-serif",
        "text.color": colours.ink,
        "axes.labelcolor": colours.ink,
        "axes.edgecolor": colours.line,
        "axes.linewidth": 1.0,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": colours.line,
        "grid.linewidth": 0.6,
        "xtick.color": colours.muted,
        "ytick.color": colours.muted,
        "lines.linewidth": 1.8,
    }
    with rc_context(style):
        made = Figure(figsize=(width, height), layout="constrained")
        made.patch.set_alpha(0.0)
        axes = made.add_subplot()
        axes.patch.set_alpha(0.0)
        yield made, axes


def svg(made: Any) -> str:
    """A figure with the colours of `PAGE` as SVG for a page."""
    text = io.StringIO()
    made.savefig(text, format="svg", metadata={"Date": None})
    found = text.getvalue()
    for name, colour in asdict(PAGE).items():
        found = found.replace(colour, f"var(--{name})")
    found = re.sub(r"<metadata>.*?</metadata>", "", found[found.index("<svg") :], flags=re.DOTALL)
    found = re.sub(r"(font: [^;\"]*px) [^;\"]*", r"\1 system-ui, sans-serif", found)
    number = next(_numbers)  # several pictures in a page must not share ids
    found = re.sub(r'\bid="([^"]+)"', rf'id="f{number}-\1"', found)
    found = re.sub(r'(url\(|href=")#', rf"\1#f{number}-", found)
    head = found.index(">")
    opening = re.sub(r'\b(width|height)="[^"]*pt"', "", found[:head])
    return f'{opening} aria-hidden="true" focusable="false"{found[head:]}'


def save_picture(made: Any, file: Path) -> None:
    """Write a figure with the colours of `WHITE` as .svg or .png; a ValueError for another suffix."""
    if file.suffix not in (".svg", ".png"):
        raise ValueError(f"{file} is neither .svg nor .png; name the picture so")
    with replacing(file) as new:
        made.savefig(new, format=file.suffix[1:], dpi=200, facecolor="white", metadata=DATELESS[file.suffix])
