"""Sparse low rank described: its weight is not one tensor network, but branches of inputs and bands of outputs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from ..formats import Ranks
from ..formats.ladders import steps
from ..formats.slr import SparseLowRank
from ..network.site import Site
from .layers import dense_layer, layer_row

# For each level the letters of its rank, inputs and outputs, and the names of its branch and of its band.
LEVELS = (("r", "C", "T"), ("s", "b", "a"), ("x", "d", "e"))
BRANCHES, BANDS = "VQP", "ABD"


def rank_letters(format: SparseLowRank) -> str:
    """The letter of each rank, in the order of the ranks."""
    return "r" + "".join("".join(letters) for letters in LEVELS[1 : format.levels])


def equation(format: SparseLowRank) -> str:
    """The rows of the weight, band by band, the most important outputs first."""
    bands = []
    for place, count in enumerate(range(format.levels, 0, -1)):
        branches = "; ".join(BRANCHES[:count])
        factor = f"[{branches}]" if count > 1 else branches
        bands.append(f"W[{LEVELS[count - 1][2].lower()}] = {BANDS[place]} {factor}")
    held = ", ".join(f"{BRANCHES[n]}[{LEVELS[n][0]}, {LEVELS[n][1]}]" for n in range(1, format.levels))
    return f"{', '.join(bands)}, with {held} zero for all other inputs"


def cost_formula(format: SparseLowRank, site: Site) -> str:
    """Parameters of all factors, as a sum of products."""
    taps = f"{site.taps}·" if site.taps > 1 else ""
    terms = [f"{taps}{inputs}·{rank}" for rank, inputs, _ in LEVELS[: format.levels]]
    for count in range(format.levels, 0, -1):
        ranks = "+".join(letters[0] for letters in LEVELS[:count])
        outputs = LEVELS[count - 1][2]
        inner = f"({outputs}-{LEVELS[count][2]})" if count < format.levels else outputs
        terms.append(f"{inner}·{f'({ranks})' if count > 1 else ranks}")
    return " + ".join(terms)


def candidates(format: SparseLowRank, site: Site, step: int) -> list[Ranks]:
    """Equal ranks for levels that hold all, half and a quarter of the neurons."""
    limits, found = format.limits(site), []
    for rank in steps(limits[0], step):
        ranks = [rank]
        for level in range(1, format.levels):
            channels, rows = (max(1, limit >> level) for limit in limits[1:][1:3])
            ranks += [min(rank, rows, channels * site.taps), channels, rows]
        found.append(tuple(ranks))
    return found


def layers(format: SparseLowRank, site: Site, ranks: Ranks) -> Iterator[dict[str, Any]]:
    """The layers that the format builds: branches side by side, then bands side by side."""
    chain: Any = format.build(dense_layer(site), ranks, bias=False)
    tap_letter = ", q" if site.taps > 1 else ""
    branches = [
        (name, f"{rank}, {inputs.lower()}{tap_letter}") for name, (rank, inputs, _) in zip_longest(BRANCHES, LEVELS)
    ]
    bands = []
    for place, count in enumerate(range(format.levels, 0, -1)):
        held = " ".join(letters[0] for letters in LEVELS[:count])
        bands.append((BANDS[place], f"{LEVELS[count - 1][2].lower()}, {held}"))
    for modules, names in ((chain[0].levels, branches), (chain[1].bands, bands)):
        for module, (name, letters) in zip(modules, names, strict=False):
            yield layer_row(module, f"{name}[{letters}]")
        yield {"layer": "place" if modules is chain[0].levels else "reorder"}


def described(format: SparseLowRank, site: Site, ranks: Ranks) -> dict[str, Any]:
    """The format for one layer."""
    T, C, *kernel = site.weight_shape
    return {
        "equation": equation(format),
        "rank_letters": rank_letters(format),
        "formula": cost_formula(format, site),
        "modes": {},
        "sizes": {"t": T, "c": C, **({"q": site.taps} if kernel else {})},
        "layers": list(layers(format, site, ranks)),
    }
