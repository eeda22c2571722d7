"""Tucker with spatial modes: channels, rows, columns and outputs each have a basis.

Letters: t outputs, c channels, h kernel rows, w kernel columns, a, b, i, j their bonds.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..linalg import splitting
from ..network.site import Site
from .base import Ranks
from .ladders import proportional
from .multilinear import Multilinear
from .network import Network
from .shape import Shape

# Kept rows and columns that curves try, where the kernel is larger.
KEPT = ((1, 1), (2, 2), (1, 2), (2, 1))


class Tucker(Multilinear):
    """`W[t, c, h, w] = sum A[t, a] M[a, b, i, j] B[b, c] P[b, i, h] Q[b, i, j, w]`.

    1 x 1 -> depthwise k x 1 -> depthwise 1 x k -> 1 x 1 -> 1 x 1. A depthwise convolution stores rows and columns for
    every channel anyway, so here every channel has its own: at the same cost this contains every Tucker form.

    Source: Tucker, "Some Mathematical Notes on Three-mode Factor Analysis", 1966; Kim et al., 2016, arXiv 1511.06530.
    """

    name = "tucker"
    summary = "Tucker with spatial modes: 1 x 1, depthwise k x 1 and 1 x k, 1 x 1, 1 x 1"
    use = "large kernels with many channels, where rows and columns of the kernel can be narrowed as well"

    def unfit(self, site: Site) -> str | None:
        if len(site.kernel_size) != 2 or min(site.kernel_size) == 1:
            other = "svd" if site.taps == 1 else "tucker2"
            return f"{self.name} needs a convolution kernel of two directions, larger than 1 in both; use {other}"
        return None

    def network(self, shape: Shape, ranks: Ranks) -> Network:
        (a, b, i, j), (H, W) = ranks, shape.kernel
        sizes = {"g": shape.groups, "t": shape.outputs, "c": shape.channels, "h": H, "w": W}
        sizes |= {"a": a, "b": b, "i": i, "j": j}
        return Network(("bc", "bih", "bijw", "abij", "ta"), "c", "t", "hw", sizes, shape.kernel)

    def largest(self, shape: Shape) -> Ranks:
        return (shape.outputs, shape.channels, *shape.kernel)

    def ladders(self, shape: Shape, step: int) -> list[list[Ranks]]:
        kept = [pair for pair in KEPT if pair[0] < shape.kernel[0] and pair[1] < shape.kernel[1]]
        return [[(*ranks, *pair) for ranks in proportional((shape.outputs, shape.channels), step)] for pair in kept]

    def starts(self, network: Network, X: Tensor) -> Iterator[list[Tensor]]:
        sizes = network.sizes
        A, rest = splitting.split(X.flatten(1), sizes["a"])
        rest = rest.reshape(-1, *X.shape[1:])
        B, rest = splitting.split(rest.movedim(1, 0).flatten(1), sizes["b"])
        core = rest.reshape(-1, sizes["a"], sizes["h"], sizes["w"])  # b, a, h, w
        rows, columns, middles = [], [], []
        for slab in core:
            P, left = splitting.split(slab.movedim(1, 0).flatten(1), sizes["i"])  # h x i, i x (a w)
            per_row = [splitting.split(part.reshape(sizes["a"], -1).mT, sizes["j"]) for part in left]
            rows.append(P.mT)
            columns.append(torch.stack([Q.mT for Q, _ in per_row]))
            middles.append(torch.stack([M for _, M in per_row]))  # i, j, a
        yield [B.mT, torch.stack(rows), torch.stack(columns), torch.stack(middles).permute(3, 0, 1, 2), A]
