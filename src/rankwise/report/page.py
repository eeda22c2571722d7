"""A report as one HTML page that needs nothing else: no network, no further files."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from ..drawing import Bar, bars_figure, svg
from ..figures.rows import ENGINES, figure_rows
from ..files import replacing
from ..plan import DENSE
from . import drawing
from .findings import Findings, Layer
from .html import Cell, anchor, figure, listed, section, table, text
from .tree import tree
from .verdict import LARGE, gist, worse

PANELS = 12  # layers with pictures of their own, those with the most MACs
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_page(found: Findings, file: Path) -> None:
    """Write a report; an older file is replaced as a whole.

    Raises:
        ImportError: without matplotlib, with the command that installs it.
    """
    page = html_of(found)
    with replacing(file) as new:
        new.write_text(page, encoding="utf-8")


def html_of(found: Findings) -> str:
    """The page."""
    sections = {
        "Figures": [_tiles(found), _figures(found)],
        "What got worse": [_worse(found)],
        "Time": list(_time(found)),
        "Other budgets": list(_front(found)),
        "The network before and after": [tree(found.layers)],
        "Layers": list(_layers(found.layers)),
        "Predicted and measured errors": list(_errors(found)),
        "Singular values and the ranks kept": list(_panels(found.layers, spectra=True)),
        "Error curves": list(_panels(found.layers, spectra=False)),
        "Answers that changed": list(_changes(found)),
        "Notes": [listed([*found.notes, *found.missing]) if found.notes or found.missing else ""],
        "Environment": [_environment(found)],
        "Repeat this run": list(_repeat(found)),
    }
    made = {title: section(title, *parts) for title, parts in sections.items()}
    links = "".join(f'<li><a href="#{anchor(title)}">{escape(title)}</a></li>' for title, body in made.items() if body)
    inner = "\n".join(made.values())
    return document(
        found.title,
        f"<header>{text('h1', found.title)}{text('p', gist(found))}{text('p', _written(found), 'quiet')}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n<main id="main">{inner}</main>',
    )


def document(title: str, body: str) -> str:
    """A page around its body."""
    own = files(__package__)
    style, script = ((own / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · Rankwise</title><style>{style}</style></head>\n"
        f'<body><a class="skip" href="#main">Skip to the content</a>{body}\n'
        "<footer>Written by Rankwise. Errors are relative squared errors of a layer's output; MACs are "
        f"multiply-accumulates for one input.</footer><script>{script}</script></body></html>\n"
    )


def _written(found: Findings) -> str:
    made = found.provenance
    return ", ".join(filter(None, [found.name, made.get("created", "").replace("T", " ").replace("+00:00", " UTC")]))


def _tiles(found: Findings) -> str:
    dense, small = (found.figures.get(name, {}) for name in ("dense", "compressed"))
    tiles = []
    for key, title in (("params", "parameters"), ("macs", "MACs"), ("bytes", "bytes on disk")):
        if dense.get(key) and small.get(key):
            tiles.append((title, f"{small[key] / dense[key]:.1%}", f"{small[key]:,} of {dense[key]:,}"))
    if "top1" in dense and "top1" in small:
        change = f"{small['top1'] - dense['top1']:+.2f} points"
        tiles.append(("top-1 accuracy", f"{small['top1']:.2f} %", f"{change}, dense {dense['top1']:.2f} %"))
    elif "agreement" in small:
        tiles.append(("agreement", f"{small['agreement']:.2f} %", "answers as the dense network gives them"))
    for engine, title in ENGINES.items():
        if speedup := small.get(f"speedup_{engine}"):
            low, high = speedup["low"], speedup["high"]
            within = f"{low:.2f} to {high:.2f}" if low is not None and high is not None else "too few rounds"
            tiles.append((f"speed in {title}", f"{speedup['median']:.2f} times", f"95 % interval {within}"))
    inner = "".join(
        f'<div class="tile">{text("dt", title)}<dd>{text("div", big, "big")}{text("div", more, "quiet")}</dd></div>'
        for title, big, more in tiles
    )
    return f'<dl class="tiles">{inner}</dl>' if tiles else ""


def _figures(found: Findings) -> str:
    names = tuple(name for name in ("dense", "compressed") if name in found.figures)
    if not names:
        return ""
    batch = found.figures.get("timing", {}).get("batch")
    rows = [
        [Cell(title), *(Cell(each, kind="number") for each in cells)]
        for title, *cells in figure_rows(found.figures, batch, names)
    ]
    measured = found.measured or f"measured on {found.figures.get('measured_on', 'data that is not known')}"
    titles = ["", *names, *(["compressed / dense"] if len(names) == 2 else [])]
    return table(measured[0].upper() + measured[1:], titles, rows, sorts=False)


def _worse(found: Findings) -> str:
    lost = worse(found)
    return listed(lost) if lost else text("p", "Nothing that was measured got worse.")


def _time(found: Findings) -> Iterator[str]:
    for engine, title in ENGINES.items():
        key = f"latency_{engine}_ms"
        bars = []
        for name in ("dense", "compressed"):
            each = found.figures.get(name, {})
            if key in each:
                low, high = each.get(f"{key}_interval") or (None, None)
                bars.append(Bar(name, each[key], low, high, dense=name == "dense"))
        if bars:
            told = ", ".join(f"{bar.label} {bar.value:.3g} ms" for bar in bars)
            yield text("h3", title)
            yield figure(svg(bars_figure(bars, "ms")), f"{told}; lines are 95 % intervals of the median")
    timing = found.figures.get("timing", {})
    if timing:
        threads = "thread" if timing.get("threads") == 1 else "threads"
        busy = f"; the load was {timing['load']:.1f} on {timing['cores']} cores" if "load" in timing else ""
        yield text("p", f"Batch of {timing.get('batch')}, {timing.get('threads')} {threads}{busy}.", "quiet")
    if found.plan is not None and found.plan.latency is not None:
        yield text("p", f"Plan: {found.plan.latency}.")


def _front(found: Findings) -> Iterator[str]:
    front = found.front
    if front is None or not front.points:
        return
    unit = "MACs" if front.unit == "macs" else front.unit
    told = f"{front.title} against the share of {unit}; the diamond is this network, the square the dense one"
    yield figure(svg(drawing.front_figure(front)), told)
    rows = [
        [Cell(each.label), Cell.number(each.share, "{:.1%}"), Cell.number(each.value, "{:.4g}")]
        for each in front.points
    ]
    numbers = table(told, ["budget", f"share of {unit}", front.title], rows)
    yield f"<details><summary>The numbers</summary>{numbers}</details>"


def _layers(layers: Sequence[Layer]) -> Iterator[str]:
    if not layers:
        return
    titles = ["layer", "weight", "format", "ranks", "parameters", "MACs", "MACs kept", "predicted error"]
    titles += ["measured error", "why"]
    rows = []
    for layer in layers:
        large = "bad" if (layer.predicted or 0.0) > LARGE else ""
        whole = layer.format == DENSE
        rows.append(
            [
                Cell(layer.name),
                Cell(f"{layer.kind} {'x'.join(map(str, layer.shape))}".strip()),
                Cell(layer.format, kind="quiet" if whole else ""),
                Cell(", ".join(map(str, layer.ranks)), layer.ranks[0] if layer.ranks else "", "number"),
                _of(layer.after[0], layer.before[0]),
                _of(layer.after[1], layer.before[1]),
                Cell.number(layer.share, "{:.0%}"),
                Cell.number(None if whole else layer.predicted, "{:.2%}", large),
                Cell.number(layer.measured, "{:.2%}"),
                Cell(layer.why, kind="why"),
            ]
        )
    made = table("Every layer that could be factorised, in the order of execution. Headers sort.", titles, rows)
    yield f'<div class="layers">{made}</div>'


def _of(now: int, before: int | None) -> Cell:
    """An amount, and what it was if that is another."""
    told = f"{now:,}" if before in (None, now) else f"{now:,} of {before:,}"
    return Cell(told, now, "number")


def _errors(found: Findings) -> Iterator[str]:
    both = [each for each in found.layers if each.predicted and each.measured]
    if not both:
        return
    count = "batch" if found.samples == 1 else "batches"
    told = f"Errors of {len(both)} factorised layers, measured on {found.samples} {count}"
    yield text(
        "p",
        "The plan predicts the error of each layer alone. Measured errors hold those of all layers before it, so "
        "points lie above the line where errors add up, and near it where later layers repair them.",
    )
    yield figure(svg(drawing.errors_figure(both)), told, "half")


def _panels(layers: Sequence[Layer], *, spectra: bool) -> Iterator[str]:
    drawn = [each for each in layers if (any(value > 0 for value in each.values) if spectra else len(each.curve) > 2)]
    drawn = sorted(drawn, key=lambda each: -(each.before[1] or 0))[:PANELS]
    if not drawn:
        return
    if spectra:
        yield text("p", "Singular values of the weight in the metric of the plan. What is shaded is cut off.")
    else:
        yield text("p", "Predicted error of every option of a layer; the diamond is the one that was chosen.")
    parts = []
    for layer in sorted(drawn, key=lambda each: layers.index(each)):
        how = f"{layer.format} {', '.join(map(str, layer.ranks))}".strip()
        if spectra:
            told, made = f"{layer.name}: {len(layer.values)} singular values, {how}", drawing.spectrum_figure(layer)
        else:
            told, made = f"{layer.name}: {len(layer.curve)} options, {how}", drawing.curve_figure(layer)
        parts.append(figure(svg(made), told))
    yield f'<div class="panels">{"".join(parts)}</div>'
    if len(layers) > len(drawn):
        yield text("p", f"The {len(drawn)} layers with the most MACs of {len(layers)}.", "quiet")


def _changes(found: Findings) -> Iterator[str]:
    changes = found.changes
    if changes is None:
        return
    if changes.total:
        share = changes.changed / changes.total
        yield text("p", f"{changes.changed:,} of {changes.total:,} answers changed ({share:.2%}).")
    if changes.classes:
        labelled = any(each.labels for each in changes.classes)
        titles = ["class", "dense answers", "changed", "changed share"]
        titles += ["labels", "dense right", "compressed right"] if labelled else []
        rows = []
        for each in changes.classes:
            cells = [Cell(f"class {each.index}", each.index), Cell.number(each.answers), Cell.number(each.changed)]
            cells.append(Cell.number(each.changed / each.answers if each.answers else None, "{:.1%}"))
            rows.append(cells + ([Cell.number(n) for n in (each.labels, *each.right)] if labelled else []))
        yield table("Classes by the answers that changed, at most 20", titles, rows)
    if changes.outputs:
        rows = [[Cell(f"output {number}", number), Cell.number(error, "{:.3%}")] for number, error in changes.outputs]
        yield table("Outputs by their relative error, at most 20", ["output", "relative error"], rows)
    if changes.samples:
        yield text("h3", "Samples that changed most")
        items = []
        for sample in changes.samples:
            label = "" if sample.label is None else f", label {sample.label}"
            told = f"Sample {sample.index}: class {sample.before} became {sample.after}{label}"
            png = drawing.picture(sample.inputs)
            image = ""
            if png is not None:
                image = f'<img alt="{escape(told, quote=True)}" src="data:image/png;base64,{b64encode(png).decode()}">'
            items.append(
                f"<li>{image}{text('div', told)}{text('div', f'divergence {sample.distance:.3g} nats', 'quiet')}</li>"
            )
        yield f'<ul class="samples">{"".join(items)}</ul>'


def _environment(found: Findings) -> str:
    rows = [[Cell(name), Cell(value)] for name, value in {**found.environment, **found.provenance}.items()]
    return table("Where the network was made and measured", ["", ""], rows, sorts=False) if rows else ""


def _repeat(found: Findings) -> Iterator[str]:
    if found.line:
        yield text("p", "The command:")
        yield text("pre", found.line)
    if found.run:
        yield text("p", "The same as a file for rankwise --config:")
        yield text("pre", found.run)
