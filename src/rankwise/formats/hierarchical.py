"""Hierarchical Tucker: a tree of bases, joined by small transfer tensors.

Letters: t outputs, c channels, q taps; for a split matrix t, u, v output modes and i, j, k input modes; a, b, e bonds.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..linalg import splitting
from ..network.site import Site
from .base import Ranks
from .ladders import proportional, split_number
from .multilinear import Multilinear
from .network import Network
from .shape import Shape

# Numbers of shared kernels that curves try, as a share of the taps.
SHARED = (0.34, 0.67)


class HierarchicalTucker(Multilinear):
    """`W[t, c, q] = sum A[t, a] M[a, b, e] B[b, c] E[e, q]`: 1 x 1 to few channels, 1 x 1 to kernels, k x k, 1 x 1.

    A matrix: `W[t u v, i j k] = sum A[a, t, i] B[b, u, j] M[a, b, e] E[e, v, k]`.

    Source: Hackbusch, Kühn, "A New Scheme for the Tensor Representation", 2009; Yin, Liao, Liu, Wang, Yuan,
    "Compressing Recurrent Neural Networks Using Hierarchical Tucker Tensor Decomposition", 2020, arXiv 2005.04366.
    """

    name = "ht"
    summary = "hierarchical Tucker: bases of outputs, channels and taps, bound by a tree of small tensors"
    use = "convolutions made of a few k x k kernels that all channels share; matrices at few parameters, not MACs"

    def unfit(self, site: Site) -> str | None:
        shape = Shape.of_site(site)
        if shape.taps == 1 and 1 in (split_number(shape.outputs, 3)[0], split_number(shape.channels, 3)[0]):
            return f"{self.name} needs more inputs and outputs to split; use svd"
        return None

    def network(self, shape: Shape, ranks: Ranks) -> Network:
        a, b, e = ranks
        sizes = {"g": shape.groups, "a": a, "b": b, "e": e, "q": shape.taps}
        if shape.taps > 1:
            sizes |= {"t": shape.outputs, "c": shape.channels}
            return Network(("bc", "abe", "eq", "ta"), "c", "t", "q", sizes, shape.kernel)
        sizes |= dict(zip("tuv", split_number(shape.outputs, 3), strict=True))
        sizes |= dict(zip("ijk", reversed(split_number(shape.channels, 3)), strict=True))
        tap = "q" if shape.kernel else ""
        return Network(("evk" + tap, "buj", "abe", "ati"), "ijk", "tuv", tap, sizes, shape.kernel)

    def modes(self, shape: Shape) -> tuple[int, int, int]:
        """Sizes of the three leaves."""
        if shape.taps > 1:
            return shape.outputs, shape.channels, shape.taps
        sizes = self.network(shape, (1, 1, 1)).sizes
        return sizes["t"] * sizes["i"], sizes["u"] * sizes["j"], sizes["v"] * sizes["k"]

    def largest(self, shape: Shape) -> Ranks:
        first, second, third = self.modes(shape)
        return min(first, second * third), min(second, first * third), min(third, first * second)

    def ladders(self, shape: Shape, step: int) -> list[list[Ranks]]:
        a, b, e = self.largest(shape)
        if shape.taps == 1:
            return [proportional((a, b, e), 1)]  # a layer's channels are products of ranks and modes
        taps = sorted({max(1, round(share * e)) for share in SHARED})
        return [[(*ranks, kept) for ranks in proportional((a, b), step)] for kept in taps]

    def starts(self, network: Network, X: Tensor) -> Iterator[list[Tensor]]:
        convolution = len(network.channels) == 1
        leaves = ("t", "c", "q") if convolution else ("ti", "uj", "vk" + network.spatial)
        modes = torch.einsum(f"{network.equation.kernel}->{''.join(leaves)}", X)
        modes = modes.reshape([network.count(leaf) for leaf in leaves])
        core, bases = modes, []
        for place, bond in enumerate("abe"):
            basis, _ = splitting.split(modes.movedim(place, 0).flatten(1), network.sizes[bond])
            core = torch.tensordot(core, basis, dims=([0], [0]))  # each new bond goes last: a, b, e in the end
            bases.append(torch.einsum("mr->rm", basis).reshape(-1, *network.shape(leaves[place])))
        made = {"abe": core, **{bond + leaf: basis for bond, leaf, basis in zip("abe", leaves, bases, strict=True)}}
        by_letters = {frozenset(own): (own, part) for own, part in made.items()}
        owned = [(*by_letters[frozenset(letters)], letters) for letters in network.factors]
        yield [torch.einsum(f"{own}->{letters}", part) for own, part, letters in owned]
