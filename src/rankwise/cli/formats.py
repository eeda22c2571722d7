"""`rankwise formats`: the ways to factorise a layer, what each one costs, and when to use it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from ..names import FORMATS as NAMES
from ..names import check_engine_name, read_format
from .command import command
from .options.base import Telling, argument, plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..network.site import Site
    from .output import Output

WIDTH_FOR_LAYERS = 110

Name = Annotated[
    str | None, argument("[NAME]", "Show this format in full, with settings or without: tt, stt:slices=4.")
]
Conv = Annotated[str | None, plain("--conv C,T,K", "Count for a K x K convolution of C channels to T.")]
For = Annotated[
    str | None,
    plain("--for ENGINE", "Show what is tried by default for this engine: formats and steps of ranks, by width."),
]
Threads = Annotated[int, plain("--threads N", "Threads of the engine.")]
Linear = Annotated[str | None, plain("--linear C,T", "Count for a linear layer of C inputs to T outputs.")]


@command
def formats(
    tell: Telling,
    name: Name = None,
    conv: Conv = None,
    linear: Linear = None,
    engine: For = None,
    threads: Threads = 1,
) -> None:
    """Show the ways to factorise a layer: what each one is, what it costs in its ranks, when to use it.

    Example: [bold]rankwise formats[/bold], or one in full: [bold]rankwise formats tucker2[/bold], or for one layer
    what half of its MACs buys in each format: [bold]rankwise formats --conv 64,64,3[/bold]. What is tried by default:
    [bold]rankwise formats --for onnxruntime[/bold]

    Letters: [bold]T[/bold] outputs, [bold]C[/bold] channels or inputs, small letters the ranks, which are shown in the
    order in which [dim]--pin[/dim] and plan.yaml take them.
    """
    with tell.output() as out:
        if engine is not None:
            if name or conv or linear:
                raise ValueError("--for shows what an engine likes; leave NAME, --conv and --linear out")
            _for_engine(out, engine, threads)
            return
        if name is not None:
            read_format(name, sorted(NAMES))
        from ..describe.formats import describe
        from ..formats import FORMATS, get_format

        site = _site_of(conv, linear)
        if name is not None:
            described = [describe(get_format(name), site)]
            for part in _page(described[0]):
                out.show(part)
        else:
            described = [describe(format, site) for format in FORMATS.values()]
            out.show(_overview(described, out.console.width) if site is None else _comparison(described, site))
            out.say("")
            out.say(
                "T outputs, C channels or inputs, both per group and without the bias; t·u·v = T, c·s or i·j·k = C: "
                "outputs and channels read as several modes; other letters: ranks.\n"
                "Some have settings, written after a colon: stt:slices=4, tt:outputs=8x16x6,inputs=4x16x12.\n"
                "One in full, with its settings: rankwise formats NAME. For one layer: rankwise formats --conv 64,64,3"
                if site is None
                else "Of the ranks that Rankwise would try, those nearest to half of the MACs, without the bias. "
                "Errors depend on the network: see rankwise plan."
            )
        out.result("formats", {"formats": described})


def _for_engine(out: Output, engine: str, threads: int) -> None:
    """The table of what is tried by default in an engine."""
    check_engine_name(engine, where=f"--for {engine!r}: ")
    from ..describe.engines import suited
    from ..latency import get_engine
    from .tables import _table

    runs_in = get_engine(engine, 1 if engine.startswith("roofline:") else threads)
    with out.step(f"measuring what {runs_in} computes at once"):
        rows = suited(runs_in)
    table = _table("layer", right=("width", "ranks below a block", "above it"), wide="formats tried by default")
    for row in rows:
        below = "none" if row["step"] == row["block"] else f"multiples of {row['step']}"
        figures = (str(row["width"]), below, f"multiples of {row['block']}")
        table.add_row(_unbroken(row["layer"]), *figures, ", ".join(row["formats"]))
    out.show(table)
    out.say("")
    out.say(
        f"Width: the smaller of outputs and channels. Measured in {runs_in} on this machine and kept on disk. "
        "--formats and --round-to choose otherwise."
    )
    out.result("formats", {"engine": engine, "threads": threads, "rows": rows})


def _site_of(conv: str | None, linear: str | None) -> Site | None:
    from ..describe.layers import layer_site

    if conv is not None and linear is not None:
        raise ValueError("--conv and --linear are two layers; give one of them")
    if conv is not None:
        channels, outputs, kernel = _numbers(conv, "--conv", "C,T,K", "64,64,3")
        return layer_site((outputs, channels, kernel, kernel))
    if linear is not None:
        inputs, outputs = _numbers(linear, "--linear", "C,T", "512,512")
        return layer_site((outputs, inputs))
    return None


def _numbers(text: str, option: str, form: str, example: str) -> list[int]:
    words = text.split(",")
    if len(words) != len(form.split(",")) or not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"{option} {text!r} is not {form}, numbers above 0 such as {example}")
    return [int(word) for word in words]


def _overview(described: list[dict[str, Any]], width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 2, 1, 0))
    layers = width >= WIDTH_FOR_LAYERS
    titles = ["format", "what it is", "layers of a 3 x 3", "parameters: 3 x 3, linear", "takes", "when to use it"]
    for title in titles:
        if layers or title != titles[2]:
            table.add_column(_unbroken(title), overflow="fold", no_wrap=title in ("format", "takes"))
    for form in described:
        formulas = [form[kind]["formula"] for kind in ("conv", "linear") if "refused" not in form[kind]]
        table.add_row(
            Text(form["name"], style="bold"),
            _unbroken(form["summary"]),
            *([_unbroken(_chain_text(form["conv"]))] if layers else []),
            "\n".join(formulas),
            _unbroken("\n".join(form["takes"])),
            _unbroken(form["use"]),
        )
    return table


def _unbroken(text: str) -> str:
    """The text with "1×1" for "1 x 1", so that a cell does not break it."""
    return re.sub(r"\b(\w) x (?=\w\b)", "\\1\u00d7", text)


def _chain_text(kind: Mapping[str, Any]) -> str:
    from ..describe.formats import MOVES

    return ", ".join(part["layer"] for part in kind.get("layers", ()) if part["layer"] not in MOVES) or "refused"


def _comparison(described: list[dict[str, Any]], site: Site) -> RenderableType:
    from ..describe.layers import kind_of, layer_name
    from .tables import _table

    table = _table("format", "ranks", right=("params", "of dense", "MACs of dense"), wide="layers")
    table.add_row("dense", "", f"{site.params:,}", "100.0%", "100.0%", layer_name(site))
    for form in described:
        kind = form[kind_of(site)]
        if "refused" in kind:
            table.add_row(form["name"], "", "", "", "", f"refused: {kind['refused']}", style="dim")
            continue
        shares = (f"{kind['params_share']:.1%}", f"{kind['macs_share']:.1%}")
        ranks = ",".join(map(str, kind["ranks"]))
        table.add_row(form["name"], ranks, f"{kind['params']:,}", *shares, _unbroken(_channels_text(kind["layers"])))
    return table


def _channels_text(layers: list[dict[str, Any]]) -> str:
    from ..describe.formats import MOVES

    return ", ".join(
        f"{part['layer']} {part['inputs']}→{part['outputs']}" for part in layers if part["layer"] not in MOVES
    )


def _page(form: Mapping[str, Any]) -> Iterator[RenderableType]:
    """One format in full."""
    from rich.padding import Padding
    from rich.text import Text

    yield Text.assemble((form["name"], "bold"), "  ", form["summary"])
    for paragraph in form["about"]:
        yield Padding(Text(paragraph), (1, 0, 0, 0))
    takes = ", ".join(form["takes"]) or "layers of the sizes in its settings"
    facts = {"use it for": form["use"], "takes": takes, "source": form["source"]}
    yield Padding(_facts(facts), (1, 0, 0, 0))
    if form["settings"]:
        own = form["name"].partition(":")[0]
        settings = {f"{own}:{key}={one['example']}": one["about"] for key, one in form["settings"].items()}
        yield Padding(Text("settings, several of them with commas in between", style="bold"), (1, 0, 0, 0))
        yield Padding(_facts(settings), (0, 0, 0, 2))
    for key in ("conv", "linear"):
        if key in form and "refused" in form[key]:
            yield Padding(Text(f"{key}: {form[key]['refused']}", style="dim"), (1, 0, 0, 0))
        elif key in form:
            yield Padding(_kind_part(form[key]), (1, 0, 0, 0))


def _facts(facts: Mapping[str, str]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for title, text in facts.items():
        table.add_row(Text(title, style="bold"), Text(text))
    return table


def _kind_part(kind: Mapping[str, Any]) -> RenderableType:
    """The format on one kind of layer: equation, ranks, cost, and an example with its layers."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    from ..describe.formats import MOVES
    from ..describe.layers import layer_name, layer_site
    from .tables import _table

    modes = "".join(f", {name} = {split}" for name, split in kind["modes"].items())
    sizes = ", ".join(f"{letter} = {size}" for letter, size in kind["sizes"].items())
    facts = {
        "equation": kind["equation"],
        "ranks": f"{', '.join(kind['rank_letters'])}, in this order; at most {', '.join(map(str, kind['largest']))}",
        "parameters": kind["formula"] + modes,
        "sizes": sizes,
        "example": f"ranks {','.join(map(str, kind['ranks']))}: {kind['params']:,} parameters "
        f"({kind['params_share']:.1%} of dense), {kind['macs_share']:.1%} of its MACs",
    }
    layers = _table("layer", "factor", right=("inputs", "outputs", "groups", "slices", "parameters"))
    for part in kind["layers"]:
        if part["layer"] in MOVES:
            layers.add_row(MOVES[part["layer"]], style="dim")
            continue
        numbers = (f"{part[key]:,}" for key in ("inputs", "outputs", "groups", "slices", "params"))
        layers.add_row(part["layer"], Text(part["factor"]), *numbers)
    title = Text(layer_name(layer_site(tuple(kind["weight_shape"]))), style="bold underline")
    return Group(title, _facts(facts), Padding(layers, (1, 0, 0, 2)))
