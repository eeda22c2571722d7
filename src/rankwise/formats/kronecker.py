"""Sum of Kronecker products; each factor is a layer on parts of the channels.

Letters: t, u parts of the outputs, c, s parts of the channels, q taps, r terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..linalg import splitting
from ..network.site import Site
from .base import Ranks
from .ladders import divisors, single
from .multilinear import Multilinear
from .network import Network
from .shape import Shape


class Kronecker(Multilinear):
    """`W[t u, c s, q] = sum_r A[r, t, c, q] B[r, u, s]`: `B` on slices of the channels, then `A` across them.

    The channels are split so that a term has the fewest parameters. In the weight metric the singular value
    decomposition of the rearranged weight is the optimum.

    Source: Van Loan, Pitsianis, "Approximation with Kronecker Products", 1993; Hameed, Tahaei, Mosleh, Nia,
    "Convolutional Neural Network Compression through Generalized Kronecker Product Decomposition", 2022, arXiv
    2109.14710.
    """

    name = "kronecker"
    summary = "sum of Kronecker products: a small layer on slices of the channels, another one across the slices"
    use = "very small budgets, and weights that repeat one block; the steps from rank to rank are coarse"

    def unfit(self, site: Site) -> str | None:
        if self.largest(Shape.of_site(site)) == (1,):
            return f"{self.name} needs numbers of inputs and outputs that can be split; use svd"
        return None

    def network(self, shape: Shape, ranks: Ranks) -> Network:
        (rank,), (u, s) = ranks, self.parts(shape)
        tap = "q" if shape.kernel else ""
        sizes = {"g": shape.groups, "t": shape.outputs // u, "u": u, "c": shape.channels // s, "s": s, "r": rank}
        sizes["q"] = shape.taps
        return Network(("rus", "rtc" + tap), "cs", "tu", tap, sizes, shape.kernel)

    def parts(self, shape: Shape) -> tuple[int, int]:
        """Outputs and inputs of the second factor, such that a term has the fewest parameters."""
        T, C, Q = shape.outputs, shape.channels, shape.taps
        pairs = [(u, s) for u in divisors(T) for s in divisors(C)]

        def preference(pair: tuple[int, int]) -> tuple[int, float]:
            u, s = pair
            # Among equal counts prefer even splits of both sides: with a whole side in one factor it is a plain SVD.
            return T * C * Q // (u * s) + u * s, abs(math.log(u * u / T)) + abs(math.log(s * s / C))

        return min(pairs, key=preference)

    def largest(self, shape: Shape) -> Ranks:
        u, s = self.parts(shape)
        return (min(u * s, shape.outputs * shape.channels * shape.taps // (u * s)),)

    def ladders(self, shape: Shape, step: int) -> list[list[Ranks]]:
        return [single(self.largest(shape)[0], 1)]

    def starts(self, network: Network, X: Tensor) -> Iterator[list[Tensor]]:
        second, first = network.factors
        tap = network.spatial
        rows = torch.einsum(f"{network.equation.kernel}->tc{tap}us", X)
        U, V = splitting.split(rows.reshape(network.count("tc" + tap), -1), network.sizes["r"])
        A = torch.einsum(f"tc{tap}r->{first}", U.reshape(network.shape("tc" + tap + "r")))
        yield [torch.einsum(f"rus->{second}", V.reshape(network.shape("rus"))), A]
