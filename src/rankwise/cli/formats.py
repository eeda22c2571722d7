"""`rankwise formats`: the ways to factorise a layer, what each one costs, and when to use it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import nn

    from ..formats import Format, Ranks
    from ..formats.multilinear import Shape
    from ..formats.network import Network
    from ..sites import Site

# The layers that a format is shown for, unless the user names one: outputs, inputs, kernel.
CONV = (64, 64, 3, 3)
LINEAR = (512, 512)
WIDTH_FOR_LAYERS = 110

# Factors (letters as in `formats/network.py`) and letters of the ranks of the formats that are no `Multilinear`.
CLOSED_FORMS: dict[str, dict[str, tuple[tuple[str, ...], str, str]]] = {
    "svd": {"conv": (("rcq", "tr"), "q", "r"), "linear": (("rc", "tr"), "", "r")},
    "spatial_svd": {"conv": (("rch", "trw"), "hw", "r")},
    "tucker2": {"conv": (("sc", "rsq", "tr"), "q", "rs")},
}
# Letters that a docstring may leave out: the one tap of a 1 x 1 convolution, and the bond that closes a ring.
LOOSE = {"q", "x"}
NAMES = {"svd": ("V", "U"), "spatial_svd": ("V", "U"), "tucker2": ("B", "G", "A")}

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", show_default=False, help="Show this format in full.")]
Conv = Annotated[
    str | None,
    typer.Option("--conv", metavar="C,T,K", help="Count for a K x K convolution of C channels to T: 64,64,3."),
]
Linear = Annotated[
    str | None, typer.Option("--linear", metavar="C,T", help="Count for a linear layer of C inputs to T outputs.")
]


def formats(
    name: Name = None,
    conv: Conv = None,
    linear: Linear = None,
    json: options.Json = None,
    debug: options.Debug = False,
) -> None:
    """Show the ways to factorise a layer: what each one is, what it costs in its ranks, when to use it.

    Example: [bold]rankwise formats[/bold], or one in full: [bold]rankwise formats tucker2[/bold], or for one layer
    what half of its MACs buys in each format: [bold]rankwise formats --conv 64,64,3[/bold]

    Letters: [bold]T[/bold] outputs, [bold]C[/bold] channels or inputs, small letters the ranks, which are shown in the
    order in which [dim]--pin[/dim] and plan.yaml take them.
    """
    with Output(json, debug=debug) as out:
        from ..formats import FORMATS

        site = _site_of(conv, linear)
        if name is not None:
            if name not in FORMATS:
                near = difflib.get_close_matches(name, list(FORMATS), n=5, cutoff=0.4) or list(FORMATS)
                raise ValueError(f"there is no format {name!r}; near names are: {', '.join(near)}")
            described = [describe(FORMATS[name], site)]
            for part in _page(described[0]):
                out.show(part)
        else:
            described = [describe(format, site) for format in FORMATS.values()]
            out.show(_overview(described, out.console.width) if site is None else _comparison(described, site))
            out.say("")
            out.say(
                "T outputs, C channels or inputs, both per group and without the bias; t·u·v = T, c·s or i·j·k = C: "
                "outputs and channels read as several modes; other letters: ranks.\n"
                "One in full: rankwise formats NAME. For one layer: rankwise formats --conv 64,64,3"
                if site is None
                else "Of the ranks that Rankwise would try, those nearest to half of the MACs, without the bias. "
                "The errors depend on the network: rankwise plan."
            )
        out.result("formats", {"formats": described})


def describe(format: Format, site: Site | None = None) -> dict[str, Any]:
    """Everything that is known of a format, as plain values.

    Args:
        format: the format.
        site: describe it for this layer; else for a 3 x 3 convolution and a linear layer.
    """
    text, _, source = (format.__doc__ or "").partition("Source:")
    sites = {kind_of(site): site} if site else {"conv": layer_site(CONV), "linear": layer_site(LINEAR)}
    return {
        "name": format.name,
        "summary": format.summary,
        "use": format.use,
        "about": [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()],
        "source": " ".join(source.split()).removesuffix("."),
        "takes": _takes(format),
        **{kind: _described(format, site) for kind, site in sites.items()},
    }


def layer_site(weight_shape: tuple[int, ...]) -> Site:
    """A made-up layer without bias that is called once, for one output position of a convolution."""
    from ..sites import Call, Site

    size = (1, 1) if len(weight_shape) == 4 else ()
    return Site(
        name="layer",
        kind="conv2d" if size else "linear",
        weight_shape=weight_shape,
        has_bias=False,
        calls=(Call(rows=1, in_positions=1, in_size=size, out_size=size),),
    )


def kind_of(site: Site) -> str:
    """ "conv" or "linear"."""
    return "conv" if site.kind == "conv2d" else "linear"


def half(format: Format, site: Site) -> Ranks:
    """Ranks nearest to half of the layer's MACs, of those that the format would try on it."""
    from ..formats.multilinear import Multilinear, Shape, proportional
    from ..profile import rank_step

    step = rank_step(site, "auto")
    if isinstance(format, Multilinear):
        candidates = [ranks for ladder in format.ladders(Shape.of_site(site), step) for ranks in ladder]
    else:
        candidates = proportional(format.limits(site), step, count=400)
    return min(candidates, key=lambda ranks: abs(2 * format.cost(site, ranks, bias=False).macs - site.macs))


def network_of(format: Format, shape: Shape, ranks: Ranks) -> Network:
    """The tensor network of any format."""
    from ..formats.multilinear import Multilinear
    from ..formats.network import Network

    if isinstance(format, Multilinear):
        return format.network(shape, ranks)
    factors, spatial, letters = CLOSED_FORMS[format.name]["conv" if shape.kernel else "linear"]
    sizes = {"g": shape.groups, "t": shape.outputs, "c": shape.channels, **dict(zip(letters, ranks, strict=True))}
    sizes |= dict(zip(spatial, shape.kernel if len(spatial) == 2 else (shape.taps,), strict=False))
    return Network(factors, "c", "t", spatial, sizes, shape.kernel)


def rank_letters(format: Format, site: Site) -> str:
    """The letter of each rank, in the order of the ranks."""
    from ..formats.multilinear import Shape

    marks = tuple(range(1, len(format.limits(site)) + 1))
    network = network_of(format, Shape.of_site(site), marks)
    modes = {"g", *network.outputs, *network.channels, *network.spatial}
    letters = {network.sizes[letter]: letter for letter in set("".join(network.factors)) - modes}
    return "".join(letters[mark] for mark in marks)


def factor_names(format: Format, network: Network) -> list[str]:
    """The capital that the format's docstring gives to each factor, known by its letters, else by its modes alone."""
    if format.name in NAMES:
        return list(NAMES[format.name])
    terms = [term for cls in type(format).__mro__ for term in re.findall(r"\b([A-Z])\[([a-z, ]+)\]", cls.__doc__ or "")]
    modes = {*network.outputs, *network.channels, *network.spatial}

    def name(letters: str) -> str:
        own = set(letters) - LOOSE
        for known in (own, own & modes):
            for capital, inside in terms:
                held = set(re.findall("[a-z]", inside)) - LOOSE
                if capital != "W" and known == (held if known is own else held & modes):
                    return capital
        return "F"

    return [name(letters) for letters in network.factors]


def equation(format: Format, site: Site) -> str:
    """The weight as a sum of products of the factors, the one at the outputs first."""
    from ..formats.multilinear import Shape

    network = network_of(format, Shape.of_site(site), half(format, site))
    pairs = list(zip(factor_names(format, network), network.factors, strict=True))
    product = " ".join(f"{name}[{', '.join(letters)}]" for name, letters in reversed(pairs))
    modes = ", ".join(" ".join(letters) for letters in (network.outputs, network.channels) if letters)
    taps = "".join(f", {letter}" for letter in network.spatial)
    return f"W[{modes}{taps}] = sum over {', '.join(rank_letters(format, site))} of {product}"


def cost_formula(network: Network) -> str:
    """Parameters of all factors, as a sum of products: taps as numbers, T and C, and small letters."""
    taps = {letter: str(network.sizes[letter]) for letter in network.spatial}
    whole = {letters: name for letters, name in ((network.outputs, "T"), (network.channels, "C")) if len(letters) == 1}
    symbols = {**taps, **whole}

    def product(letters: str) -> str:
        words = [symbols.get(letter, letter) for letter in letters if symbols.get(letter) != "1"]
        return "·".join(sorted(words, key=lambda word: (word.islower(), word.isupper(), word)))

    return " + ".join(map(product, network.factors))


def split_modes(network: Network) -> dict[str, str]:
    """What the outputs and channels are read as, where that is several modes: {"T": "t·u·v"}."""
    return {
        name: "·".join(letters)
        for name, letters in (("T", network.outputs), ("C", network.channels))
        if len(letters) > 1
    }


def _described(format: Format, site: Site) -> dict[str, Any]:
    """The format for one layer, or why it refuses it."""
    from ..formats.multilinear import Shape

    if why := format.refuses(site):
        return {"refused": why}
    ranks = half(format, site)
    network, cost = network_of(format, Shape.of_site(site), ranks), format.cost(site, ranks, bias=False)
    return {
        "weight_shape": site.weight_shape,
        "equation": equation(format, site),
        "rank_letters": rank_letters(format, site),
        "formula": cost_formula(network),
        "modes": split_modes(network),
        "sizes": {letter: network.sizes[letter] for letter in network.outputs + network.channels + network.spatial},
        "largest": format.limits(site),
        "ranks": ranks,
        "params": cost.params,
        "params_share": cost.params / site.params,
        "macs_share": cost.macs / site.macs,
        "layers": list(layers_of(format, site, ranks)),
    }


def layers_of(format: Format, site: Site, ranks: Ranks) -> Iterator[dict[str, Any]]:
    """The layers that the format builds, and where channels are only reordered in between.

    `slices` counts the parts of the channels that a layer runs over alike, beside the samples.
    """
    from ..formats.multilinear import Shape

    network = network_of(format, Shape.of_site(site), ranks)
    chain: Any = format.build(dense_layer(site), ranks, bias=False)
    factors = iter(zip(factor_names(format, network), network.steps, strict=True))
    held = network.weighted(chain)
    for module in chain:
        if not any(module is other for other in held):
            yield {"layer": "reorder"}
            continue
        name, step = next(factors)
        yield {
            "layer": layer_text(module),
            "factor": f"{name}[{', '.join(step.letters)}]",
            "inputs": module.weight.shape[1] * getattr(module, "groups", 1),
            "outputs": module.weight.shape[0],
            "groups": getattr(module, "groups", 1),
            "slices": network.count(step.waiting),
            "params": module.weight.numel(),
        }


def dense_layer(site: Site) -> nn.Module:
    """A layer of a made-up site's shape, without memory for its weight."""
    from torch import nn

    outputs, inputs, *kernel = site.weight_shape
    if kernel:
        return nn.Conv2d(inputs, outputs, (kernel[0], kernel[1]), bias=False, device="meta")
    return nn.Linear(inputs, outputs, bias=False, device="meta")


def layer_text(module: Any) -> str:
    """Such as "1 x 1", "depthwise 3 x 1", "grouped Linear"."""
    kernel = getattr(module, "kernel_size", None)
    text = "Linear" if kernel is None else " x ".join(map(str, kernel))
    groups = getattr(module, "groups", 1)
    if groups == 1:
        return text
    depthwise = kernel is not None and groups == module.in_channels
    return ("depthwise " if depthwise else "grouped ") + text


def _takes(format: Format) -> list[str]:
    """Kinds of layers that the format does not refuse, tried on sizes that can be split."""
    tried = {"linear": LINEAR, "1 x 1": (64, 64, 1, 1), "1 x k": (64, 64, 1, 3), "k x k": CONV}
    return [name for name, shape in tried.items() if format.refuses(layer_site(shape)) is None]


def _site_of(conv: str | None, linear: str | None) -> Site | None:
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
    """The text with "1×1" for "1 x 1", which a cell would break."""
    return re.sub(r"\b(\w) x (?=\w\b)", "\\1\u00d7", text)


def _chain_text(kind: Mapping[str, Any]) -> str:
    return ", ".join(part["layer"] for part in kind.get("layers", ()) if part["layer"] != "reorder") or "refused"


def _comparison(described: list[dict[str, Any]], site: Site) -> RenderableType:
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
    return ", ".join(
        f"{part['layer']} {part['inputs']}→{part['outputs']}" for part in layers if part["layer"] != "reorder"
    )


def layer_name(site: Site) -> str:
    """Such as "3 x 3 convolution of 64 channels to 64"."""
    outputs, inputs, *kernel = site.weight_shape
    if kernel:
        return f"{kernel[0]} x {kernel[1]} convolution of {inputs} channels to {outputs}"
    return f"linear layer of {inputs} inputs to {outputs} outputs"


def _page(form: Mapping[str, Any]) -> Iterator[RenderableType]:
    """One format in full."""
    from rich.padding import Padding
    from rich.text import Text

    yield Text.assemble((form["name"], "bold"), "  ", form["summary"])
    for paragraph in form["about"]:
        yield Padding(Text(paragraph), (1, 0, 0, 0))
    facts = {"use it for": form["use"], "takes": ", ".join(form["takes"]), "source": form["source"]}
    yield Padding(_facts(facts), (1, 0, 0, 0))
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
        if part["layer"] == "reorder":
            layers.add_row("reorder channels", style="dim")
            continue
        numbers = (f"{part[key]:,}" for key in ("inputs", "outputs", "groups", "slices", "params"))
        layers.add_row(part["layer"], Text(part["factor"]), *numbers)
    title = Text(layer_name(layer_site(tuple(kind["weight_shape"]))), style="bold underline")
    return Group(title, _facts(facts), Padding(layers, (1, 0, 0, 2)))
