"""Figures of one network, or of two side by side, as rows of a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..evaluate import Ratio, shown

# The figure that is compared by its ratio.
PERPLEXITY = "perplexity"
ENGINES = {
    "torch": "torch",
    "compile": "torch.compile",
    "onnxruntime": "onnxruntime",
    "executorch": "ExecuTorch",
    "cuda": "torch on CUDA",
}
# Figure -> (title, how to print it, what the last column says).
_FIGURES: dict[str, tuple[str, str, str]] = {
    "params": ("parameters", "{:,.0f}", "share"),
    "macs": ("MACs per input", "{:,.0f}", "share"),
    "bytes": ("bytes on disk", "{:,.0f}", "share"),
    **{
        f"latency_{engine}_ms": (f"ms in {name}, batch {{batch}}", "{:.3f}", f"speedup_{engine}")
        for engine, name in ENGINES.items()
    },
    "top1": ("top-1 accuracy", "{:.2f} %", "points"),
    "top5": ("top-5 accuracy", "{:.2f} %", "points"),
}
Row = tuple[str, ...]


def figure_rows(figures: Mapping[str, Mapping[str, Any]], batch: int | None, names: tuple[str, ...]) -> list[Row]:
    """A title, the figure of every network, and for two networks how they compare.

    Args:
        figures: by network and key.
        batch: samples in a batch when latency was measured; None if not known.
        names: the networks, at most two.

    Example:
        >>> figure_rows({"dense": {"params": 4}, "compressed": {"params": 2}}, 1, ("dense", "compressed"))
        [('parameters', '4', '2', '50.0%')]
    """
    rows = list[Row]()
    last = figures[names[-1]]
    for key, (title, form, compare) in _FIGURES.items():
        values = [figures[name].get(key) for name in names]
        if all(value is None for value in values):
            continue
        cells = [cell(figures[name], key, form) for name in names]
        if len(names) == 2 and compare.startswith("speedup"):
            cells.append(speed(last.get(compare)))
        elif len(names) == 2:
            cells.append(compared(values[0], values[1], compare))
        named = title.format(batch=batch) if batch else title.partition(",")[0]
        rows.append((_title(last, key, named), *cells))
    for title, unit, key in _judged(last):
        cells = [shown(figures[name][key], unit) if key in figures[name] else "" for name in names]
        both = len(names) == 2 and all(key in figures[name] for name in names)
        ratio = f"{last[key] / figures[names[0]][key]:.3f} times" if both and key == PERPLEXITY else ""
        rows.append((title, *cells, *([ratio] if len(names) == 2 else [])))
    return rows


def compared(dense: float | None, small: float | None, compare: str) -> str:
    """Two values compared by their share or by points."""
    if dense is None or small is None or not compare:
        return ""
    if compare == "points":
        return f"{small - dense:+.2f} points"
    return f"{small / dense:.1%}" if dense and small else ""


def cell(figures: Mapping[str, Any], key: str, form: str) -> str:
    """A figure, with its interval if it has one."""
    value, interval = figures.get(key), figures.get(f"{key}_interval")
    if value is None:
        return ""
    return form.format(value) + ("" if interval is None else f" ({' to '.join(map(form.format, interval))})")


def speed(speedup: Mapping[str, float] | None) -> str:
    """A speed-up in words."""
    if speedup is None:
        return ""
    return str(Ratio(**{key: math.inf if value is None else value for key, value in speedup.items()}))


def _title(judged: Mapping[str, Any], key: str, title: str) -> str:
    """The title of a row; an accuracy's includes the dimension of the classes."""
    accuracy = judged.get("measures", {}).get("accuracy")
    return f"{key.replace('top', 'top-')} {accuracy['title']}" if accuracy and key.startswith("top") else title


def _judged(judged: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Title, unit and key of every figure but accuracy that judges networks, with those of single outputs."""
    for key, measure in judged.get("measures", {}).items():
        if key in judged:
            yield measure["title"], measure["unit"], key
        for part in (each for each in judged if each.startswith(f"{key}.")):
            yield f"  of output {part.removeprefix(f'{key}.')}", measure["unit"], part
