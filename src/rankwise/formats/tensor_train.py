"""Tensor train and tensor ring: a row of factors, each bound to the next.

The row of a convolution runs over its outputs, rows, columns and channels. A matrix has no such modes: its outputs and
inputs are each read as several smaller modes, and each factor holds one output and one input mode.

Letters: see `row`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..linalg import splitting
from ..network.site import Site
from .base import Ranks
from .ladders import capped, proportional
from .multilinear import Multilinear
from .network import Network
from .row import MOST_MODES, Row, paired, single
from .shape import Modes, Shape

# Size of the closing bond that curves of rings try; at size 1 a ring is a train.
CLOSING = 2
# Middle bonds of a convolution that curves try, relative to the mean of the outer ones with their slices.
MIDDLE = (0.6, 1.0)


@dataclass(frozen=True, kw_only=True)
class TensorTrain(Multilinear):
    """`W[t, c, h, w] = sum A[t, a] G[a, h, b] F[b, w, d] D[d, c]`: 1 x 1 -> 1 x k -> k x 1 -> 1 x 1.

    A kernel has one layer for each of its directions. A matrix:
    `W[t u v, i j k] = sum A[t, i, a] G[a, u, j, b] D[b, v, k]`.

    Args:
        outputs: sizes of the output modes; by default a matrix has three, as equal as possible, a convolution one. Each
            mode of a convolution has a factor of its own.
        inputs: sizes of the input modes, likewise.

    Source: Oseledets, "Tensor-Train Decomposition", 2011; Novikov, Podoprikhin, Osokin, Vetrov, "Tensorizing Neural
    Networks", 2015, arXiv 1509.06569 (matrices).
    """

    outputs: Modes | None = None
    inputs: Modes | None = None

    name = "tt"
    summary = "tensor train: 1 x 1, 1 x k, k x 1, 1 x 1; a matrix as three factors of split outputs and inputs"
    use = "channels, rows and columns narrowed at once; of a matrix it saves parameters rather than MACs"
    closed: ClassVar[bool] = False
    middle: ClassVar[tuple[float, ...]] = MIDDLE

    def unfit(self, site: Site) -> str | None:
        shape = Shape.of_site(site)
        if why := shape.unlike(self.outputs, self.inputs) or self.too_many(shape):
            return f"{self.name} {why}; use svd"
        row = self.row(shape)
        if sum(row.size(group) > 1 for group in range(len(row.groups))) < 2:
            return f"{self.name} needs more inputs or outputs to split; use svd"
        if self.closed and len(row.groups) < 3:
            return f"{self.name} closes a ring of at least three factors, and here are two; use svd"
        return None

    def too_many(self, shape: Shape) -> str | None:
        """Why no row has these numbers of modes; None if one has."""
        counts = {len(modes) for modes in (self.outputs, self.inputs) if modes is not None}
        if self.pairs(shape):
            return "pairs output and input modes, and needs as many of both" if len(counts) > 1 else None
        return f"takes at most {MOST_MODES} modes of each side here" if max(counts, default=1) > MOST_MODES else None

    def pairs(self, shape: Shape) -> bool:
        """Whether a factor holds an output mode and an input mode, not only one mode."""
        return shape.taps == 1

    def row(self, shape: Shape) -> Row:
        """The modes of the factors."""
        return (paired if self.pairs(shape) else single)(shape, self.outputs, self.inputs)

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
        row, ladder = self.row(shape), proportional
        limits = row.limits()
        families: list[Ranks] = [limits]
        if (self.outputs or self.inputs) and not self.pairs(shape):
            ladder = capped  # the limits of bonds in the middle are products of many modes
        elif len(limits) > 2:
            outer, *inner, last = limits
            width = (outer * row.slices_at(1, row.outputs) + last * row.slices_at(-2, row.channels)) / 2
            middles = [max(1, round(share * width)) for share in self.middle]
            families = [(outer, *(min(middle, limit) for limit in inner), last) for middle in middles]
        if shape.taps == 1:
            step = 1  # a layer's channels are products of ranks and modes
        if not self.closed:
            return [ladder(family, step) for family in families]
        x = min(CLOSING, self.largest(shape)[0])
        opened = [(max(1, first // x), *middle, max(1, last // x)) for first, *middle, last in families]
        return [[(x, *ranks) for ranks in ladder(family, step)] for family in opened]

    def fits_at_once(self, network: Network, R: int, S: int) -> bool:
        return not self.closed or super().fits_at_once(network, R, S)  # a plain train starts nearly at the optimum

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
    random = 31
    closed = True
