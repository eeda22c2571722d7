"""Tensor train and tensor ring, plain and semi-tensor: a row of factors, each bound to the next.

The row of a convolution runs over its outputs, rows, columns and channels. A matrix has no such modes: its outputs and
inputs are each split into several smaller modes, and each factor holds one output and one input mode. In the
semi-tensor forms the two outer factors are shared by several slices of the channels, which makes them smaller.

Letters: t outputs, u slices of them, c channels, s slices of them, h kernel rows, w kernel columns; for a split matrix
t, u, v output modes and i, j, k input modes; z kernel planes; q the one tap of a 1 x 1 convolution; a, b, d, e bonds,
x the bond that closes a ring.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..linalg import splitting
from ..network.site import Site
from .base import Ranks
from .ladders import proportional, split_number
from .multilinear import Multilinear
from .network import Network
from .shape import Shape

# Slices that share the outer factors of a semi-tensor form.
SLICES = 2
# Size of the closing bond that curves of rings try; at size 1 a ring is a train.
CLOSING = 2
# Middle bonds of a convolution that curves try, relative to the mean of the outer ones.
MIDDLE = (0.6, 1.0)


class Row(NamedTuple):
    """Modes of each factor, the one at the outputs first, and the modes of outputs, channels and taps."""

    groups: tuple[str, ...]
    outputs: str
    channels: str
    spatial: str
    sizes: dict[str, int]

    @property
    def bonds(self) -> str:
        return "abde"[: len(self.groups) - 1]

    def terms(self, closed: bool) -> list[str]:
        """Letters of the factors, the one at the outputs first."""
        bonds = self.bonds
        terms = [(bonds[k - 1] if k else "") + group + bonds[k : k + 1] for k, group in enumerate(self.groups)]
        if closed:
            terms[0], terms[-1] = "x" + terms[0], terms[-1] + "x"
        return terms

    def size(self, *groups: int) -> int:
        """Product of the sizes of some groups of modes."""
        return math.prod(self.sizes[letter] for group in groups for letter in self.groups[group])

    def limits(self) -> Ranks:
        """Ranks at which a train is exact."""
        count = len(self.groups)
        return tuple(min(self.size(*range(k)), self.size(*range(k, count))) for k in range(1, count))


class TensorTrain(Multilinear):
    """`W[t, c, h, w] = sum A[t, a] G[a, h, b] F[b, w, d] D[d, c]`: 1 x 1 -> 1 x k -> k x 1 -> 1 x 1.

    A kernel has one layer for each of its directions. A matrix:
    `W[t u v, i j k] = sum A[t, i, a] G[a, u, j, b] D[b, v, k]`.

    Source: Oseledets, "Tensor-Train Decomposition", 2011; Novikov, Podoprikhin, Osokin, Vetrov, "Tensorizing Neural
    Networks", 2015, arXiv 1509.06569 (matrices).
    """

    name = "tt"
    summary = "tensor train: 1 x 1, 1 x k, k x 1, 1 x 1; a matrix as three factors of split outputs and inputs"
    use = "channels, rows and columns narrowed at once; of a matrix it saves parameters rather than MACs"
    slices = 1
    closed = False

    def unfit(self, site: Site) -> str | None:
        shape = Shape.of_site(site)
        if self.slices > 1 and shape.outputs % self.slices and shape.channels % self.slices:
            return f"{self.name} needs an even number of inputs or outputs; use svd"
        row = self.row(shape)
        if sum(row.size(group) > 1 for group in range(len(row.groups))) < 2:
            return f"{self.name} needs more inputs or outputs to split; use svd"
        return None

    def row(self, shape: Shape) -> Row:
        """The modes of the factors."""
        T, C = shape.outputs, shape.channels
        sizes = {"g": shape.groups, "q": 1}
        tap = "q" if shape.kernel else ""
        if self.slices == 1 and shape.taps == 1:
            # The largest output mode goes with the smallest input mode, so that the factors have similar sizes.
            sizes |= dict(zip("tuv", split_number(T, 3), strict=True))
            sizes |= dict(zip("ijk", reversed(split_number(C, 3)), strict=True))
            return Row(("ti", "uj", "vk" + tap), "tuv", "ijk", tap, sizes)
        u, s = (self.slices if number % self.slices == 0 else 1 for number in (T, C))
        sizes |= {"t": T // u, "u": u, "c": C // s, "s": s}
        if shape.taps == 1:
            return Row(("t", "us", "c" + tap), "tu", "cs", tap, sizes)
        directions = shape.directions
        sizes |= dict(zip(directions, shape.kernel, strict=True))
        if self.slices == 1:
            return Row(("t", *directions, "c"), "t", "c", directions, sizes)
        middle = list(directions)  # the first direction holds the slices of the outputs, the last those of the channels
        middle[0] = "u" + middle[0]
        middle[-1] += "s"
        return Row(("t", *middle, "c"), "tu", "cs", directions, sizes)

    def network(self, shape: Shape, ranks: Ranks) -> Network:
        row = self.row(shape)
        sizes = {**row.sizes, **dict(zip(("x" if self.closed else "") + row.bonds, ranks, strict=True))}
        factors = tuple(reversed(row.terms(self.closed)))
        return Network(factors, row.channels, row.outputs, row.spatial, sizes, shape.kernel)

    def largest(self, shape: Shape) -> Ranks:
        row = self.row(shape)
        closing = (min(row.size(0), row.size(len(row.groups) - 1)),) if self.closed else ()
        return (*closing, *row.limits())

    def ladders(self, shape: Shape, step: int) -> list[list[Ranks]]:
        limits = self.row(shape).limits()
        if shape.taps == 1:
            step = 1  # a layer's channels are products of ranks and modes
        if len(limits) > 2:
            outer, *inner, last = limits
            middles = [max(1, round(share * (outer + last) / 2)) for share in MIDDLE]
            families: list[Ranks] = [(outer, *(min(middle, limit) for limit in inner), last) for middle in middles]
        else:
            families = [limits]
        if not self.closed:
            return [proportional(family, step) for family in families]
        x = min(CLOSING, self.largest(shape)[0])
        opened = [(max(1, first // x), *middle, max(1, last // x)) for first, *middle, last in families]
        return [[(x, *ranks) for ranks in proportional(family, step)] for family in opened]

    def fits_at_once(self, network: Network, R: int, S: int) -> bool:
        plain = self.slices == 1 and not self.closed  # the start of a plain train is nearly the optimum
        return plain or super().fits_at_once(network, R, S)

    def starts(self, network: Network, X: Tensor) -> Iterator[list[Tensor]]:
        shape = Shape(1, network.count(network.outputs), network.count(network.channels), network.kernel_size)
        row, sizes = self.row(shape), network.sizes
        arranged = torch.einsum(f"{network.equation.kernel}->{''.join(row.groups)}", X)
        modes = arranged.reshape([network.count(group) for group in row.groups])
        bonds = [sizes[bond] for bond in row.bonds]
        parts = splitting.ring(modes, sizes["x"], bonds) if self.closed else splitting.train(modes, bonds)
        terms = row.terms(self.closed)
        yield [
            torch.einsum(f"{term}->{letters}", part.reshape(network.shape(term)))
            for term, part, letters in zip(reversed(terms), reversed(parts), network.factors, strict=True)
        ]


class TensorRing(TensorTrain):
    """A tensor train whose first and last factor share a bond `x` too, which is summed over last.

    Source: Zhao, Zhou, Xie, Zhang, Cichocki, "Tensor Ring Decomposition", 2016, arXiv 1606.05535; Wang, Sun, Eriksson,
    Wang, Aggarwal, "Wide Compression: Tensor Ring Nets", 2018, arXiv 1802.09052.
    """

    name = "tr"
    summary = "tensor ring: a tensor train whose ends are bound to each other"
    use = "as tt, with a closing bond: more freedom, and the inner layers run once for each of its states"
    closed = True


class SemiTensorTrain(TensorTrain):
    """`W[t u, c s, h, w] = sum A[t, a] G[a, u, h, b] F[b, w, s, d] D[d, c]`: `A` and `D` serve every slice alike.

    A matrix: `W[t u, c s] = sum A[t, a] G[a, u, s, d] D[d, c]`.

    Source: Zhao, Liu, Chen, Zhu and others, "Semi-tensor Product-based Tensor Decomposition for Neural Network
    Compression", 2021, arXiv 2109.15200.
    """

    name = "stt"
    summary = "semi-tensor train: a tensor train whose outer factors serve two slices of the channels alike"
    use = "as tt, where the outer factors are most of the cost: here they serve both halves of the channels alike"
    slices = SLICES


class SemiTensorRing(SemiTensorTrain):
    """A semi-tensor train whose first and last factor share a bond `x` too.

    Source: "Semi-tensor Product-based Tensor Decomposition for Neural Network Compression", 2021, arXiv 2109.15200.
    """

    name = "str"
    summary = "semi-tensor ring: a semi-tensor train whose ends are bound to each other"
    use = "as stt, with a closing bond: more freedom, and the inner layers run once for each of its states"
    closed = True
