"""Horizontal bars with intervals and their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .style import PAGE, Colours, figure


@dataclass(frozen=True)
class Bar:
    """A bar with an interval."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    dense: bool = False


def bars_figure(bars: Sequence[Bar], unit: str, width: float = 7.6, colours: Colours = PAGE) -> Any:
    """Horizontal bars with intervals and their values."""
    with figure(width, 0.7 + 0.42 * len(bars), colours) as (made, axes):
        top = max(max(each.value, each.high or 0.0) for each in bars)
        for place, each in enumerate(reversed(bars)):
            axes.barh(place, each.value, color=colours.dense if each.dense else colours.small, height=0.62)
            if each.low is not None and each.high is not None:
                axes.hlines(place, each.low, each.high, color=colours.ink, lw=1.6)
                axes.vlines((each.low, each.high), place - 0.12, place + 0.12, color=colours.ink, lw=1.6)
            axes.annotate(
                f"{each.value:.3g} {unit}",
                (max(each.value, each.high or 0.0), place),
                textcoords="offset points",
                xytext=(6, 0),
                va="center",
            )
        axes.set_yticks(range(len(bars)), [each.label for each in reversed(bars)])
        axes.set_xlim(0, top * 1.18)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)
        return made
