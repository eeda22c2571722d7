"""Tables for people: sites, a plan, dense against compressed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

WIDTH_FOR_REASONS = 110

if TYPE_CHECKING:
    from ..describe.environment import Extra, Ready
    from ..evaluate import Measure, Roofline, Storage
    from ..network.sites import Sites
    from ..plan import Plan


def sites_table(sites: Sites, ranks: Mapping[str, tuple[float, float]]) -> Table:
    """Every site, what it costs, and how much of its rank it uses; `ranks` holds stable and effective rank."""
    table = _table("layer", "kind", "weight", right=("params", "MACs", "share", "break-even", "stable", "effective"))
    for name, site in sites.items():
        share = site.macs / sites.total_macs if sites.total_macs else 0.0
        table.add_row(
            Text(name, style="dim" if site.stays_dense else ""),
            site.kind,
            "x".join(map(str, site.weight_shape)) + (f" /{site.groups}" if site.groups > 1 else ""),
            f"{site.params:,}",
            f"{site.macs:,}",
            f"{share:.1%}",
            "dense" if site.stays_dense else f"{site.break_even:.4g}",
            f"{ranks[name][0]:.1f}",
            f"{ranks[name][1]:.1f}",
        )
    table.add_section()
    table.add_row("whole network", "", "", f"{sites.total_params:,}", f"{sites.total_macs:,}", "100.0%", "", "", "")
    return table


def plan_table(plan: Plan, sites: Sites, width: int) -> Table:
    """Every row of a plan beside what the layer costs today, with reasons if `width` columns have room for them."""
    from ..planning.units import UNITS

    reasons = width >= WIDTH_FOR_REASONS
    table = _table(
        "layer", "format", right=("ranks", "params", "MACs", "of dense", "error"), wide="why" if reasons else None
    )
    for row in plan.rows:
        dense = sites[row.site].macs if row.site in sites else 0
        table.add_row(
            Text(row.site, style="dim" if row.format == "dense" else ""),
            row.format,
            ",".join(map(str, row.ranks)),
            f"{row.params:,}",
            f"{row.macs:,}",
            f"{row.macs / dense:.0%}" if dense else "",
            "" if row.format == "dense" or row.error is None else f"{row.error:.2%}",
            *([Text(row.why)] if reasons else []),
        )
    table.add_section()
    for name in plan.dense:
        share = plan.planned[name] / plan.dense[name] if plan.dense[name] else 1.0
        table.add_row(f"all {name}", "", "", "", UNITS[name].shown(plan.planned[name]), f"{share:.1%}", "")
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
    table = _table("", right=("bytes", "share", f"ms, threads {threads}", ""))
    for row in rows:
        share = "" if row is rows[0] else _compared(rows[0]["bytes"], row["bytes"], "share")
        time = _cell(row, "milliseconds", "{:.3f}")
        table.add_row(row["network"], f"{row['bytes']:,}", share, time, _speed(row.get("speedup")))
    return table


def doctor_tables(versions: Mapping[str, str], extras: Sequence[Extra], engines: Sequence[Ready]) -> Iterator[Table]:
    """Versions, extras and engines of this machine, with what to do about those that are missing."""
    table = _table("package", "version")
    for name, number in versions.items():
        table.add_row(name, number)
    yield table
    table = _table("extra", "for", "here", wide="install")
    for extra in extras:
        table.add_row(extra.name, extra.use, f"needs {', '.join(extra.missing)}" if extra.missing else "yes", extra.fix)
    yield table
    table = _table("engine", "runs", wide="here")
    for engine in engines:
        table.add_row(engine.name, engine.summary, Text(engine.problem or "yes"))
    yield table


# The figure that is compared by its ratio.
PERPLEXITY = "perplexity"
# Figure -> (title, how to print it, what the last column says).
_FIGURES: dict[str, tuple[str, str, str]] = {
    "params": ("parameters", "{:,.0f}", "share"),
    "macs": ("MACs per input", "{:,.0f}", "share"),
    "bytes": ("bytes on disk", "{:,.0f}", "share"),
    **{
        f"latency_{engine}_ms": (f"ms in {name}, batch {{batch}}", "{:.3f}", f"speedup_{engine}")
        for engine, name in (
            ("torch", "torch"),
            ("compile", "torch.compile"),
            ("onnxruntime", "onnxruntime"),
            ("executorch", "ExecuTorch"),
            ("cuda", "torch on CUDA"),
        )
    },
    "top1": ("top-1 accuracy", "{:.2f} %", "points"),
    "top5": ("top-5 accuracy", "{:.2f} %", "points"),
}


def figures_table(figures: Mapping[str, Mapping[str, Any]], batch: int) -> Table:
    """Figures of one network, or of a dense and a compressed one side by side; `batch` is the latency's."""
    from ..evaluate import shown

    names = [name for name in ("dense", "compressed") if name in figures]
    table = _table("", right=(*names, *(("compressed / dense",) if len(names) == 2 else ())))
    for key, (title, form, compare) in _FIGURES.items():
        values = [figures[name].get(key) for name in names]
        if all(value is None for value in values):
            continue
        cells = [_cell(figures[name], key, form) for name in names]
        if len(names) == 2 and compare.startswith("speedup"):
            cells.append(_speed(figures[names[1]].get(compare)))
        elif len(names) == 2:
            cells.append(_compared(values[0], values[1], compare))
        table.add_row(Text(_title(figures[names[-1]], key, title.format(batch=batch))), *cells)
    for title, unit, key in _judged(figures[names[-1]]):
        cells = [shown(figures[name][key], unit) if key in figures[name] else "" for name in names]
        both = len(names) == 2 and all(key in figures[name] for name in names)
        ratio = f"{figures[names[1]][key] / figures[names[0]][key]:.3f} times" if both and key == PERPLEXITY else ""
        table.add_row(Text(title), *cells, *([ratio] if len(names) == 2 else []))
    return table


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


def _compared(dense: float | None, small: float | None, compare: str) -> str:
    if dense is None or small is None or not compare:
        return ""
    if compare == "points":
        return f"{small - dense:+.2f} points"
    return f"{small / dense:.1%}" if dense and small else ""


def _cell(figures: Mapping[str, Any], key: str, form: str) -> str:
    """A figure, with its interval if it has one."""
    value, interval = figures.get(key), figures.get(f"{key}_interval")
    if value is None:
        return ""
    return form.format(value) + ("" if interval is None else f" ({' to '.join(map(form.format, interval))})")


def _speed(speedup: Mapping[str, float] | None) -> str:
    """A speed-up in words."""
    from ..evaluate import Ratio

    return "" if speedup is None else str(Ratio(**speedup))


def _table(*left: str, right: tuple[str, ...] = (), wide: str | None = None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 2, 0, 0))
    for title in left:
        table.add_column(title, overflow="fold")
    for title in right:
        table.add_column(title, justify="right", no_wrap=True)
    if wide is not None:
        table.add_column(wide, overflow="fold")
    return table
