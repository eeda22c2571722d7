"""A format whose weight is one tensor network, described: equation, ranks, cost and layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..formats import Format, Ranks
from ..formats.ladders import proportional
from ..formats.multilinear import Multilinear
from ..formats.network import Network
from ..formats.shape import Shape
from ..layers.modules import Pivoted
from ..network.site import Site
from .layers import dense_layer, layer_row

# Factors and taps (letters as in `formats/network.py`) and rank letters of formats that are not `Multilinear`.
CLOSED_FORMS: dict[str, dict[str, tuple[tuple[str, ...], str, str]]] = {
    "svd": {"conv": (("rcq", "tr"), "q", "r"), "linear": (("rc", "tr"), "", "r")},
    "pivoted_svd": {"conv": (("rcq", "tr"), "q", "r"), "linear": (("rc", "tr"), "", "r")},
    "spatial_svd": {"conv": (("rch", "trw"), "hw", "r")},
    "tucker2": {"conv": (("sc", "rsq", "tr"), "q", "rs")},
}
# Outputs that the last factor need not make because they are among its inputs: what this changes in the cost.
SPARED = {"pivoted_svd": ("T·r", "(T-r)·r")}
# Letters that docstrings may leave out: the one tap of a 1 x 1 convolution, and the bond that closes a ring.
LOOSE = {"q", "x"}
NAMES = {"svd": ("V", "U"), "pivoted_svd": ("B", "C"), "spatial_svd": ("V", "U"), "tucker2": ("B", "G", "A")}

SPARE = "FGHKLMNPQRSUVXYZDE"


def candidates(format: Format, site: Site, step: int) -> Sequence[Ranks]:
    """The ranks that the format would try on a layer."""
    if isinstance(format, Multilinear):
        return [ranks for ladder in format.ladders(Shape.of_site(site), step) for ranks in ladder]
    return proportional(format.limits(site), step, count=400)


def described(format: Format, site: Site, ranks: Ranks) -> dict[str, Any]:
    """The format for one layer."""
    network = network_of(format, Shape.of_site(site), ranks)
    return {
        "equation": equation(format, site, network),
        "rank_letters": rank_letters(format, site),
        "formula": cost_formula(network).replace(*SPARED.get(format.name, ("", ""))),
        "modes": split_modes(network),
        "sizes": {letter: network.sizes[letter] for letter in network.outputs + network.channels + network.spatial},
        "layers": list(layers_of(format, site, ranks)),
    }


def network_of(format: Format, shape: Shape, ranks: Ranks) -> Network:
    """The tensor network of any format."""
    if isinstance(format, Multilinear):
        return format.network(shape, ranks)
    factors, spatial, letters = CLOSED_FORMS[format.name]["conv" if shape.kernel else "linear"]
    sizes = {"g": shape.groups, "t": shape.outputs, "c": shape.channels, **dict(zip(letters, ranks, strict=True))}
    sizes |= dict(zip(spatial, shape.kernel if len(spatial) == 2 else (shape.taps,), strict=False))
    return Network(factors, "c", "t", spatial, sizes, shape.kernel)


def rank_letters(format: Format, site: Site) -> str:
    """The letter of each rank, in the order of the ranks."""
    marks = tuple(range(1, len(format.limits(site)) + 1))
    network = network_of(format, Shape.of_site(site), marks)
    modes = {"g", *network.outputs, *network.channels, *network.spatial}
    letters = {network.sizes[letter]: letter for letter in set("".join(network.factors)) - modes}
    return "".join(letters[mark] for mark in marks)


def factor_names(format: Format, network: Network) -> list[str]:
    """The capital of each factor in the format's docstring, matched by all its letters, else by its modes only.

    A factor that the docstring does not have, as with other settings, gets a capital that is left.
    """
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
        return ""

    named: list[str] = []
    for letters in network.factors:
        capital = name(letters)
        named.append(capital if capital and capital not in named else next(x for x in SPARE if x not in named))
    return named


def equation(format: Format, site: Site, network: Network) -> str:
    """The weight as a sum of products of the factors, the one at the outputs first."""
    pairs = list(zip(factor_names(format, network), network.factors, strict=True))
    product = " ".join(f"{name}[{', '.join(letters)}]" for name, letters in reversed(pairs))
    modes = ", ".join(" ".join(letters) for letters in (network.outputs, network.channels) if letters)
    taps = "".join(f", {' '.join(letters)}" for letters in network.shared or network.spatial)
    return f"W[{modes}{taps}] = sum over {', '.join(rank_letters(format, site))} of {product}"


def cost_formula(network: Network) -> str:
    """Parameters of all factors as a sum of products of taps (numbers), T, C and small letters."""
    taps = {letter: str(network.sizes[letter]) for letter in network.spatial}
    whole = {letters: name for letters, name in ((network.outputs, "T"), (network.channels, "C")) if len(letters) == 1}
    symbols = {**taps, **whole}

    def product(letters: str) -> str:
        words = [symbols.get(letter, letter) for letter in letters if symbols.get(letter) != "1"]
        return "·".join(sorted(words, key=lambda word: (word.islower(), word.isupper(), word)))

    return " + ".join(map(product, network.factors))


def split_modes(network: Network) -> dict[str, str]:
    """The modes of outputs and channels that are split into several: {"T": "t·u·v"}."""
    return {
        name: "·".join(letters)
        for name, letters in (("T", network.outputs), ("C", network.channels))
        if len(letters) > 1
    }


def layers_of(format: Format, site: Site, ranks: Ranks) -> Iterator[dict[str, Any]]:
    """The layers that the format builds, and reorderings between them."""
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
        yield layer_row(module, f"{name}[{', '.join(step.letters)}]", network.count(step.waiting))
        if ordered:
            yield {"layer": "join"}
