"""Two artifacts side by side: their figures, and every layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..drawing import Bar, bars_figure, svg
from ..figures.rows import ENGINES, figure_rows, speed
from ..files import replacing
from ..plan import DENSE, PlanRow
from .findings import Findings
from .html import Cell, figure, section, table, text
from .page import document

ABSENT = "-"


def figures_beside(a: Findings, b: Findings) -> list[tuple[str, ...]]:
    """Title, and the figure of each; times of two runs do not compare, so each has its speed over its own dense one."""
    figures = {"a": dict(a.figures.get("compressed", {})), "b": dict(b.figures.get("compressed", {}))}
    speeds = []
    for engine, title in ENGINES.items():
        ratios = [speed(each.get(f"speedup_{engine}")) for each in figures.values()]
        if any(ratios):
            speeds.append((f"speed over dense in {title}", *(ratio or ABSENT for ratio in ratios), ""))
    counted = {name: {key: v for key, v in each.items() if "latency_" not in key} for name, each in figures.items()}
    rows = figure_rows(counted, None, ("a", "b")) if all(counted.values()) else []
    return [*rows, *speeds]


def layers_beside(a: Findings, b: Findings) -> list[tuple[str, str, str, int | None, int | None]]:
    """Name, format and ranks of each, MACs of each; a layer that only one of them has stands as absent."""
    plans: list[Mapping[str, PlanRow]] = [{} if each.plan is None else dict(each.plan) for each in (a, b)]
    names = dict.fromkeys([*plans[0], *plans[1]])
    rows = []
    for name in names:
        own = [plan.get(name) for plan in plans]
        words = [ABSENT if row is None else _how(row) for row in own]
        one, two = (None if row is None else row.macs for row in own)
        rows.append((name, words[0], words[1], one, two))
    return rows


def write_comparison(a: Findings, b: Findings, file: Path) -> None:
    """Write the page; the names of the findings are those of the artifacts."""
    title = f"{a.name} beside {b.name}"
    rows = [[Cell(each) for each in row] for row in figures_beside(a, b)]
    layers = [
        [
            Cell(name),
            Cell(one),
            Cell(two),
            Cell.number(x),
            Cell.number(y),
            Cell.number(y / x if x and y else None, "{:.0%}"),
        ]
        for name, one, two, x, y in layers_beside(a, b)
    ]
    heads = ["layer", a.name, b.name, f"MACs, {a.name}", f"MACs, {b.name}", f"{b.name} / {a.name}"]
    body = section(
        "Figures", table("Compressed networks", ["", a.name, b.name, f"{b.name} / {a.name}"], rows, sorts=False)
    )
    body += section("Sizes", _sizes(a, b))
    body += section("Layers", table("Formats, ranks and MACs of every layer", heads, layers))
    intro = text("p", "Times are compared with each artifact's own dense network, never across two runs.", "quiet")
    page = document(title, f'<header>{text("h1", title)}{intro}</header><main id="main">{body}</main>')
    with replacing(file) as new:
        new.write_text(page, encoding="utf-8")


def _sizes(a: Findings, b: Findings) -> str:
    bars = []
    for key, title in (("params", "parameters"), ("macs", "MACs"), ("bytes", "bytes")):
        for each in (a, b):
            dense, small = (each.figures.get(name, {}).get(key) for name in ("dense", "compressed"))
            if dense and small:
                bars.append(Bar(f"{title}, {each.name}", 100 * small / dense, dense=each is a))
    if not bars:
        return ""
    told = "Per cent of the dense network: " + ", ".join(f"{bar.label} {bar.value:.1f}" for bar in bars)
    return figure(svg(bars_figure(bars, "% of dense")), told)


def _how(row: PlanRow) -> str:
    """A format with its ranks, and the predicted error."""
    if row.format == DENSE:
        return DENSE
    error = "" if row.error is None else f", error {row.error:.2%}"
    return f"{row.format} {','.join(map(str, row.ranks))}{error}"
