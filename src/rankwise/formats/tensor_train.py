"""Tensor train and tensor ring, plain and semi-tensor: one factor after the other, each bound to the next.

A convolution is a chain over its outputs, rows, columns and channels. A matrix has no such modes: its outputs and
inputs are read as several smaller ones, and each factor holds an output and an input mode. In the semi-tensor forms
the two outer factors serve several slices of the channels alike, which makes them smaller.

Letters: t outputs, u slices of them, c channels, s slices of them, h kernel rows, w kernel columns; of a split matrix
t, u, v output modes and i, j, k input modes; z kernel planes; q the one tap of a 1 x 1 convolution; a, b, d, e bonds,
x the one that closes a ring.
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

# Slices that the outer factors of a semi-tensor form serve alike.
SLICES = 2
# Closing bond of the rings on a ladder; with one state a ring is a train.
CLOSING = 2
# Middle bonds of a convolution on a ladder, relative to the outer ones.
MIDDLE = (0.6, 1.0)


class Chain(NamedTuple):
    """Modes of each factor, the one at the outputs first, and what the channels and outputs are read as."""

    groups: tuple[str, ...]
    outputs: str
    channels: str
    spatial: str
    sizes: dict[str, int]

    @property
    def bonds(self) -> str:
        return "abde"[: len(self.groups) - 1]

    def terms(self, closed: bool) -> list[str]:
        """Letters of the factors, in the same order."""
        bonds = self.bonds
        terms = [(bonds[k - 1] if k else "") + group + bonds[k : k + 1] for k, group in enumerate(self.groups)]
        if closed:
            terms[0], terms[-1] = "x" + terms[0], terms[-1] + "x"
        return terms

    def size(self, *groups: int) -> int:
        """Entries of some groups together."""
        return math.prod(self.sizes[letter] for group in groups for letter in self.groups[group])

    def limits(self) -> Ranks:
        """Ranks at which a chain is exact."""
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
        chain = self.chain(shape)
        if sum(chain.size(group) > 1 for group in range(len(chain.groups))) < 2:
            return f"{self.name} needs more inputs or outputs to split; use svd"
        return None

    def chain(self, shape: Shape) -> Chain:
        """What is chained."""
        T, C = shape.outputs, shape.channels
        sizes = {"g": shape.groups, "q": 1}
        tap = "q" if shape.kernel else ""
        if self.slices == 1 and shape.taps == 1:
            # The largest output mode goes with the smallest input mode, so that the factors are of like size.
            sizes |= dict(zip("tuv", split_number(T, 3), strict=True))
            sizes |= dict(zip("ijk", reversed(split_number(C, 3)), strict=True))
            return Chain(("ti", "uj", "vk" + tap), "tuv", "ijk", tap, sizes)
        u, s = (self.slices if number % self.slices == 0 else 1 for number in (T, C))
        sizes |= {"t": T // u, "u": u, "c": C // s, "s": s}
        if shape.taps == 1:
            return Chain(("t", "us", "c" + tap), "tu", "cs", tap, sizes)
        directions = shape.directions
        sizes |= dict(zip(directions, shape.kernel, strict=True))
        if self.slices == 1:
            return Chain(("t", *directions, "c"), "t", "c", directions, sizes)
        middle = list(directions)  # the first of them holds the slices of the outputs, the last those of the channels
        middle[0] = "u" + middle[0]
        middle[-1] += "s"
        return Chain(("t", *middle, "c"), "tu", "cs", directions, sizes)

    def network(self, shape: Shape, ranks: Ranks) -> Network:
        chain = self.chain(shape)
        sizes = {**chain.sizes, **dict(zip(("x" if self.closed else "") + chain.bonds, ranks, strict=True))}
        factors = tuple(reversed(chain.terms(self.closed)))
        return Network(factors, chain.channels, chain.outputs, chain.spatial, sizes, shape.kernel)

    def largest(self, shape: Shape) -> Ranks:
        chain = self.chain(shape)
        closing = (min(chain.size(0), chain.size(len(chain.groups) - 1)),) if self.closed else ()
        return (*closing, *chain.limits())

    def ladders(self, shape: Shape, step: int) -> list[list[Ranks]]:
        limits = self.chain(shape).limits()
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
        plain = self.slices == 1 and not self.closed  # whose start nearly is the optimum
        return plain or super().fits_at_once(network, R, S)

    def starts(self, network: Network, X: Tensor) -> Iterator[list[Tensor]]:
        shape = Shape(1, network.count(network.outputs), network.count(network.channels), network.kernel_size)
        chain, sizes = self.chain(shape), network.sizes
        arranged = torch.einsum(f"{network.equation.kernel}->{''.join(chain.groups)}", X)
        modes = arranged.reshape([math.prod(network.shape(group)) for group in chain.groups])
        bonds = [sizes[bond] for bond in chain.bonds]
        parts = splitting.ring(modes, sizes["x"], bonds) if self.closed else splitting.train(modes, bonds)
        terms = chain.terms(self.closed)
        yield [
            torch.einsum(f"{term}->{letters}", part.reshape(network.shape(term)))
            for term, part, letters in zip(reversed(terms), reversed(parts), network.factors, strict=True)
        ]


class TensorRing(TensorTrain):
    """A tensor train whose first and last factor share a bond `x` as well, which is summed over last.

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
    """A semi-tensor train whose first and last factor share a bond `x` as well.

    Source: "Semi-tensor Product-based Tensor Decomposition for Neural Network Compression", 2021, arXiv 2109.15200.
    """

    name = "str"
    summary = "semi-tensor ring: a semi-tensor train whose ends are bound to each other"
    use = "as stt, with a closing bond: more freedom, and the inner layers run once for each of its states"
    closed = True
