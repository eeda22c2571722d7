"""What is known of a format, as plain values: its equation, ranks, cost and layers, for tables, pages and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ..formats import Format, Ranks
    from ..formats.network import Network
    from ..formats.shape import Shape
    from ..network.site import Site

# The layers that a format is shown for, unless the user names one: outputs, inputs, kernel.
CONV = (64, 64, 3, 3)
LINEAR = (512, 512)

# Factors (letters as in `formats/network.py`) and letters of the ranks of the formats that are no `Multilinear`.
CLOSED_FORMS: dict[str, dict[str, tuple[tuple[str, ...], str, str]]] = {
    "svd": {"conv": (("rcq", "tr"), "q", "r"), "linear": (("rc", "tr"), "", "r")},
    "pivoted_svd": {"conv": (("rcq", "tr"), "q", "r"), "linear": (("rc", "tr"), "", "r")},
    "spatial_svd": {"conv": (("rch", "trw"), "hw", "r")},
    "tucker2": {"conv": (("sc", "rsq", "tr"), "q", "rs")},
}
# Outputs that a last factor need not make, because they are among its inputs.
SPARED = {"pivoted_svd": ("T·r", "(T-r)·r")}
# What a chain does between its layers, and how that reads.
MOVES = {"reorder": "reorder channels", "join": "join to its inputs, reorder", "place": "side by side"}
# Letters that a docstring may leave out: the one tap of a 1 x 1 convolution, and the bond that closes a ring.
LOOSE = {"q", "x"}
NAMES = {"svd": ("V", "U"), "pivoted_svd": ("B", "C"), "spatial_svd": ("V", "U"), "tucker2": ("B", "G", "A")}


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
    from ..network.site import Call, Site

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
    from ..formats.ladders import proportional
    from ..formats.multilinear import Multilinear
    from ..formats.shape import Shape
    from ..formats.slr import SparseLowRank
    from ..planning.profile import rank_step
    from . import block_facts

    step = rank_step(site, "auto")
    if isinstance(format, SparseLowRank):
        candidates = list(block_facts.candidates(format, site, step))
    elif isinstance(format, Multilinear):
        candidates = [ranks for ladder in format.ladders(Shape.of_site(site), step) for ranks in ladder]
    else:
        candidates = proportional(format.limits(site), step, count=400)
    candidates = candidates or [format.limits(site)]
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
    from ..formats.shape import Shape

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
    from ..formats.shape import Shape

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
    from ..formats.shape import Shape
    from ..formats.slr import SparseLowRank
    from . import block_facts

    if why := format.refuses(site):
        return {"refused": why}
    ranks = half(format, site)
    if isinstance(format, SparseLowRank):
        return block_facts.described(format, site, ranks)
    network, cost = network_of(format, Shape.of_site(site), ranks), format.cost(site, ranks, bias=False)
    return {
        "weight_shape": site.weight_shape,
        "equation": equation(format, site),
        "rank_letters": rank_letters(format, site),
        "formula": cost_formula(network).replace(*SPARED.get(format.name, ("", ""))),
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
    from ..formats.shape import Shape
    from ..layers.modules import Pivoted

    network = network_of(format, Shape.of_site(site), ranks)
    chain: Any = format.build(dense_layer(site), ranks, bias=False)
    factors = iter(zip(factor_names(format, network), network.steps, strict=True))
    held = network.weighted(chain)
    for module in chain:
        if not any(module is other for other in held):
            yield {"layer": "reorder"}
            continue
        name, step = next(factors)
        ordered = isinstance(module, Pivoted)
        if ordered:
            module = module.rest
        if module is None:  # all outputs were made before
            yield {"layer": "reorder"}
            continue
        yield {
            "layer": layer_text(module),
            "factor": f"{name}[{', '.join(step.letters)}]",
            "inputs": module.weight.shape[1] * getattr(module, "groups", 1),
            "outputs": module.weight.shape[0],
            "groups": getattr(module, "groups", 1),
            "slices": network.count(step.waiting),
            "params": module.weight.numel(),
        }
        if ordered:
            yield {"layer": "join"}


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


def layer_name(site: Site) -> str:
    """Such as "3 x 3 convolution of 64 channels to 64"."""
    outputs, inputs, *kernel = site.weight_shape
    if kernel:
        return f"{kernel[0]} x {kernel[1]} convolution of {inputs} channels to {outputs}"
    return f"linear layer of {inputs} inputs to {outputs} outputs"
