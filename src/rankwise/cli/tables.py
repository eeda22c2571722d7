"""Tables for people: sites, a plan, dense against compressed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

WIDTH_FOR_REASONS = 110

if TYPE_CHECKING:
    from ..describe.environment import Extra, Ready
    from ..describe.forecast import Forecast
    from ..evaluate import Measure, Roofline, Storage
    from ..figures.language import Line
    from ..network.sites import Sites
    from ..plan import Plan
    from ..report.scanning import Scanned


def sites_table(sites: Sites, ranks: Mapping[str, tuple[float, float]]) -> Table:
    """What layers cost and how much of their rank they use, repeated ones folded; `ranks`: stable and effective rank.

    The ranks of a row of several layers are the smallest and the largest of them.
    """
    from ..network.repeats import folded

    counts = ("layers", "params", "MACs", "of all MACs", "break-even", "stable", "effective")
    table = _table("layer", "kind", "weight", right=counts)
    signs = [(name, (each.kind, each.weight_shape, each.groups, each.macs)) for name, each in sites.items()]
    for group in folded((name, (*sign, sites[name].stays_dense)) for name, sign in signs):
        site, count = sites[group.names[0]], len(group)
        share = count * site.macs / sites.total_macs if sites.total_macs else 0.0
        table.add_row(
            Text(group.title, style="dim" if site.stays_dense else ""),
            site.kind,
            "x".join(map(str, site.weight_shape)) + (f" /{site.groups}" if site.groups > 1 else ""),
            f"{count}",
            f"{count * site.params:,}",
            f"{count * site.macs:,}",
            f"{share:.1%}",
            "dense" if site.stays_dense else f"{site.break_even:.4g}",
            *(_range([ranks[name][at] for name in group.names]) for at in (0, 1)),
        )
    table.add_section()
    table.add_row("whole network", "", "", "", f"{sites.total_params:,}", f"{sites.total_macs:,}", "100.0%", "", "", "")
    return table


def plan_table(plan: Plan, sites: Sites, width: int) -> Table:
    """Every row of a plan beside what the layer costs today, with reasons if `width` columns have room for them."""
    from ..plan.plan import TITLES
    from ..planning.units import UNITS

    reasons = width >= WIDTH_FOR_REASONS
    titles = ("ranks", "params", "MACs", "MACs of dense", "error")
    table = _table("layer", "format", right=titles, wide="why" if reasons else None)
    for row in plan.rows:
        dense = sites[row.site].macs if row.site in sites else 0
        table.add_row(
            Text(row.site, style="dim" if row.format == "dense" else ""),
            row.format,
            ",".join(map(str, row.ranks)),
            f"{row.params:,}",
            f"{row.macs:,}",
            f"{row.macs / dense:.0%}" if dense else "",
            "" if row.format == "dense" or row.error is None else _error(row.error),
            *([Text(row.why)] if reasons else []),
        )
    table.add_section()
    for name in plan.dense:
        share = plan.planned[name] / plan.dense[name] if plan.dense[name] else 1.0
        table.add_row(
            f"all {TITLES.get(name, name)}", "", "", "", UNITS[name].shown(plan.planned[name]), f"{share:.1%}", ""
        )
    return table


def pareto_table(rows: Sequence[Mapping[str, Any]], judge: Measure | None = None) -> Table:
    """One row per budget, from the rows that `rankwise pareto --json` writes."""
    from ..evaluate import shown

    measured = () if judge is None else (judge.title,)
    counted = ("params", "macs", "bytes", *(("latency",) if "latency_ratio" in rows[0] else ()))
    titles = ("MACs" if unit == "macs" else unit for unit in counted)
    table = _table(right=("keep", *titles, "layers factorised", "sum of errors", *measured))
    for row in rows:
        ratios = (f"{row[f'{unit}_ratio']:.1%}" for unit in counted)
        judged = [] if judge is None else [shown(row[judge.key], judge.unit)]
        table.add_row(f"{row['keep']:g}", *ratios, f"{row['factorised']}", f"{row['error']:.3f}", *judged)
    return table


def scan_table(scanned: Scanned) -> Table:
    """A row for every budget: sizes, what judges the network with its interval, speed, and which one is recommended."""
    from ..evaluate import shown
    from ..figures.rows import ENGINES, speed

    rows = scanned.rows
    engines = [name for name in ENGINES if any(f"speedup_{name}" in row["compressed"] for row in rows.values())]
    speeds = [f"speed in {ENGINES[name]}" for name in engines]
    table = _table(right=("keep", "params", "MACs", scanned.judge.title, "lost", *speeds), wide="")
    dense = shown(scanned.reference, scanned.judge.unit)
    table.add_row("dense", "100.0%", "100.0%", dense, "", *[""] * len(engines), "")
    for share, row in rows.items():
        whole, small = row["dense"], row["compressed"]
        interval = scanned.interval(share)
        value = shown(scanned.value(share), scanned.judge.unit)
        table.add_row(
            f"{share:.0%}",
            f"{small['params'] / whole['params']:.1%}",
            f"{small['macs'] / whole['macs']:.1%}",
            value + (f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else ""),
            f"{scanned.lost(share):+.2f}",
            *(speed(small.get(f"speedup_{name}")) for name in engines),
            "<- recommended" if share == scanned.recommended else "",
            style="bold" if share == scanned.recommended else "",
        )
    return table


def storage_table(storage: Storage) -> Table:
    """What is stored of every factorised layer and of the whole network."""
    table = _table("layer", "format", right=("non-zeros", "zeros", "bytes", "of them indices"))
    for layer in storage.layers:
        numbers = (layer.nonzeros, layer.zeros, layer.bytes, layer.index_bytes)
        table.add_row(Text(layer.name), layer.format, *map("{:,}".format, numbers))
    table.add_section()
    table.add_row("whole network", "", f"{storage.nonzeros:,}", "", f"{storage.bytes:,}", f"{storage.index_bytes:,}")
    return table


def roofline_table(roofline: Roofline) -> Table:
    """What every layer computes and moves, how fast, and what share of the machine's limit that is."""
    table = _table("layer", "kind", right=("MMACs", "MB", "MACs / byte", "ms", "GMAC/s", "limit", "achieved"))
    for layer in roofline.layers:
        table.add_row(
            Text(layer.name),
            layer.kind,
            f"{layer.macs / 1e6:.3f}",
            f"{layer.bytes / 1e6:.3f}",
            f"{layer.intensity:.2f}",
            f"{layer.seconds * 1e3:.3f}",
            f"{layer.macs_per_second / 1e9:.2f}",
            f"{layer.macs / layer.limit_seconds / 1e9:.2f}",
            f"{layer.share:.0%}",
        )
    table.add_section()
    limits = roofline.limits
    peak = f"at most {limits.macs_per_second / 1e9:.1f} GMAC/s, {limits.bytes_per_second / 1e9:.1f} GB/s"
    table.add_row("whole forward", "", *[""] * 3, f"{roofline.seconds * 1e3:.3f}", *[""] * 3)
    table.caption, table.caption_justify = f"this machine: {peak}", "left"
    return table


def exports_table(rows: Sequence[Mapping[str, Any]], threads: int) -> Table:
    """Size and time of exported files, from the rows that `rankwise export --json` writes, dense first."""
    from ..figures.rows import cell, compared, speed

    table = _table("", right=("bytes", "share", f"ms, threads {threads}", ""))
    for row in rows:
        share = "" if row is rows[0] else compared(rows[0]["bytes"], row["bytes"], "share")
        time = cell(row, "milliseconds", "{:.3f}")
        table.add_row(row["network"], f"{row['bytes']:,}", share, time, speed(row.get("speedup")))
    return table


def beside_tables(
    names: tuple[str, str], figures: Sequence[tuple[str, ...]], layers: Sequence[tuple[Any, ...]]
) -> Iterator[Table]:
    """Two artifacts: their figures, and formats, ranks and MACs of every layer."""
    a, b = names
    table = _table("", right=(a, b, f"{b} / {a}"))
    for title, *cells in figures:
        table.add_row(Text(title), *cells)
    yield table
    table = _table("layer", a, b, right=(f"MACs, {a}", f"MACs, {b}"))
    for name, one, two, *macs in layers:
        table.add_row(Text(name), one, two, *("" if each is None else f"{each:,}" for each in macs))
    yield table


def forecast_table(forecast: Forecast) -> Table:
    """Layers, memory, disk, and the time of every step."""
    from .progress import duration

    table = _table("what it takes", right=("",))
    table.add_row("layers that can be factorised", f"{forecast.free} of {forecast.sites}")
    table.add_row("memory beside two copies of the network", f"up to {forecast.memory / 1e9:,.2f} GB")
    table.add_row("disk", f"up to {forecast.disk / 1e6:,.1f} MB")
    for step, seconds in forecast.seconds.items():
        table.add_row(f"time to {step}", f"about {duration(seconds)}")
    return table


def doctor_tables(versions: Mapping[str, str], extras: Sequence[Extra], engines: Sequence[Ready]) -> Iterator[Table]:
    """Versions, extras and engines of this machine, with what to do about those that are missing."""
    table = _table("package", "version")
    for name, number in versions.items():
        table.add_row(name, number)
    yield table
    table = _table("extra", "for", "here", wide="install")
    for extra in extras:
        here = f"needs {', '.join(extra.missing)}" if extra.missing else "yes"
        table.add_row(extra.name, extra.use, here, Text(extra.fix))  # not markup: it has brackets
    yield table
    table = _table("engine", "runs", wide="here")
    for engine in engines:
        table.add_row(engine.name, engine.summary, Text(engine.problem or "yes"))
    yield table


def figures_table(figures: Mapping[str, Mapping[str, Any]], batch: int) -> Table:
    """Figures of one network, or of a dense and a compressed one side by side; `batch` is the latency's."""
    from ..figures.rows import figure_rows

    names = tuple(name for name in ("dense", "compressed") if name in figures)
    table = _table("", right=(*names, *(("compressed / dense",) if len(names) == 2 else ())))
    for title, *cells in figure_rows(figures, batch, names):
        table.add_row(Text(title), *cells)
    return table


def language_table(lines: Sequence[Line], networks: int) -> Table:
    """Figures of language models, of one network or of two side by side."""
    names = ("dense", "compressed")[:networks]
    table = _table("", right=(*names, *(("compressed beside dense",) if networks == 2 else ())))
    for line in lines:
        cells = [line.values.get(name, "") for name in names]
        table.add_row(Text(line.title), *cells, *([line.beside] if networks == 2 else []))
    return table


def _error(error: float) -> Text:
    """An error, marked if it is large."""
    from ..report.verdict import LARGE

    return Text(f"{error:.2%} !", style="yellow") if error > LARGE else Text(f"{error:.2%}")


def _range(values: Sequence[float]) -> str:
    """A number, or the smallest and the largest of several."""
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _table(*left: str, right: tuple[str, ...] = (), wide: str | None = None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 2, 0, 0))
    for title in left:
        table.add_column(title, overflow="fold")
    for title in right:
        table.add_column(title, justify="right", no_wrap=True)
    if wide is not None:
        table.add_column(wide, overflow="fold")
    return table
