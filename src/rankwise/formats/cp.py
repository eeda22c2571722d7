"""Canonical polyadic forms of a convolution: a sum of rank-one kernels.

Letters: t outputs, c channels, h kernel rows, w kernel columns, z kernel planes, q all taps, r terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from ..linalg import splitting
from ..network.site import Site
from .base import Ranks
from .ladders import single
from .multilinear import Multilinear
from .network import Network
from .shape import Shape


class CP3(Multilinear):
    """`W[t, c, q] = sum A[t, r] B[c, r] N[q, r]`: 1 x 1 -> depthwise k x k -> 1 x 1.

    Source: Astrid, Lee, "CP-decomposition with Tensor Power Method for Convolutional Neural Networks Compression",
    2017, arXiv 1701.07148 (the chain); Kalle et al., 2025, arXiv 2511.04494 (the metric).
    """

    name = "cp3"
    summary = "sum of rank-one kernels: 1 x 1, depthwise k x k, 1 x 1"
    use = "small budgets: a narrow layer, a depthwise one, a wide one, and a single rank to choose"
    power = 1.12
    random = 7

    def unfit(self, site: Site) -> str | None:
        if site.taps == 1:
            return f"{self.name} needs a convolution kernel larger than 1 x 1; use svd"
        return None

    def network(self, shape: Shape, ranks: Ranks) -> Network:
        (rank,) = ranks
        sizes = {"g": shape.groups, "t": shape.outputs, "c": shape.channels, "q": shape.taps, "r": rank}
        return Network(("rc", "rq", "tr"), "c", "t", "q", sizes, shape.kernel)

    def modes(self, shape: Shape) -> tuple[int, ...]:
        """Sizes of the modes."""
        return (shape.outputs, shape.channels, shape.taps)

    def largest(self, shape: Shape) -> Ranks:
        modes = self.modes(shape)
        return (math.prod(modes) // max(modes),)

    def ladders(self, shape: Shape, step: int) -> list[list[Ranks]]:
        return [single(self.largest(shape)[0], step)]

    def starts(self, network: Network, X: Tensor) -> Iterator[list[Tensor]]:
        rank = network.sizes["r"]
        A, *others = splitting.paired(X, rank) if rank <= min(X.shape[:2]) else splitting.terms(X, rank)
        yield [*(other.mT for other in others), A]


class CP(CP3):
    """`W[t, c, h, w] = sum A[t, r] B[c, r] P[h, r] Q[w, r]`: 1 x 1 -> depthwise k x 1 -> depthwise 1 x k -> 1 x 1.

    A kernel of three directions has three depthwise layers.

    Source: Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky, "Speeding-up Convolutional Neural Networks Using Fine-tuned
    CP-Decomposition", 2015, arXiv 1412.6553 (the chain); Kalle et al., 2025, arXiv 2511.04494 (the metric).
    """

    name = "cp"
    summary = "sum of rank-one kernels, rows and columns apart: 1 x 1, depthwise k x 1, depthwise 1 x k, 1 x 1"
    use = "small budgets and large kernels: a term costs 2 k numbers for the kernel; hard to fit at high ranks"

    def unfit(self, site: Site) -> str | None:
        if len(site.kernel_size) == 1 and site.taps > 1:
            return f"{self.name} needs a kernel of several directions; use cp3, which is the same for one direction"
        return super().unfit(site)

    def network(self, shape: Shape, ranks: Ranks) -> Network:
        sizes = {"g": shape.groups, "t": shape.outputs, "c": shape.channels, "r": ranks[0]}
        sizes |= dict(zip(shape.directions, shape.kernel, strict=True))
        kernel = [f"r{direction}" for direction in shape.directions]
        return Network(("rc", *kernel, "tr"), "c", "t", shape.directions, sizes, shape.kernel)

    def modes(self, shape: Shape) -> tuple[int, ...]:
        return (shape.outputs, shape.channels, *shape.kernel)
