"""Sum of Kronecker products; each factor is a layer on parts of the channels.

Letters: t, u parts of the outputs, c, s parts of the channels, q taps, r terms; h, w, z rows, columns and planes of
the first factor's kernel, y, p, o of the second's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linalg import splitting
from ..network.site import Site
from .base import Ranks
from .ladders import divisors, single
from .multilinear import Multilinear
from .network import Network
from .shape import Modes, Shape

# Letter of the second factor's taps by that of the first's.
FINE = {"z": "o", "h": "y", "w": "p"}


@dataclass(frozen=True, kw_only=True)
class Kronecker(Multilinear):
    """`W[t u, c s, q] = sum_r A[r, t, c, q] B[r, u, s]`: `B` on slices of the channels, then `A` across them.

    The channels are split so that a term has the fewest parameters. In the weight metric the singular value
    decomposition of the rearranged weight is the optimum. Both factors may have kernels, whose sizes multiply:
    `W[t u, c s, h y, w p] = sum_r A[r, t, c, h, w] B[r, u, s, y, p]`, with `A` dilated by the size of `B`'s kernel.

    Args:
        kernel: of `A`; `B` has the rest of the taps. By default `A` has all.
        outputs: t and u, by default those with the fewest parameters.
        inputs: c and s, likewise.

    Source: Van Loan, Pitsianis, "Approximation with Kronecker Products", 1993; Hameed, Tahaei, Mosleh, Nia,
    "Convolutional Neural Network Compression through Generalized Kronecker Product Decomposition", 2022, arXiv
    2109.14710.
    """

    kernel: Modes | None = None
    outputs: Modes | None = None
    inputs: Modes | None = None

    name = "kronecker"
    summary = "sum of Kronecker products: a small layer on slices of the channels, another one across the slices"
    use = "very small budgets, and weights that repeat one block; the steps from rank to rank are coarse"

    def unfit(self, site: Site) -> str | None:
        shape = Shape.of_site(site)
        if why := shape.unlike(self.outputs, self.inputs) or self.unshared(site):
            return f"{self.name} {why}; use svd"
        if self.largest(shape) == (1,):
            return f"{self.name} needs numbers of inputs and outputs that can be split; use svd"
        return None

    def unshared(self, site: Site) -> str | None:
        """Why the factors cannot have these kernels; None if they can."""
        if self.kernel is None:
            return None
        words = " x ".join(map(str, site.kernel_size)) or "no kernel"
        if len(self.kernel) != len(site.kernel_size):
            return f"splits kernels of {len(self.kernel)} directions, and here is {words}"
        pairs = list(zip(self.kernel, site.kernel_size, strict=True))
        if any(size % own for own, size in pairs):
            return f"cannot split a kernel of {words}, whose sizes are no multiples"
        if not any(1 < own < size for own, size in pairs) or site.padding != "same":
            return None
        if any(d * (size - 1) % 2 for d, size in zip(site.dilation, site.kernel_size, strict=True)):
            return "has no pair of layers with more zeros on one side, which 'same' needs for this kernel"
        return None

    def network(self, shape: Shape, ranks: Ranks) -> Network:
        (rank,), (u, s) = ranks, self.parts(shape)
        sizes = {"g": shape.groups, "t": shape.outputs // u, "u": u, "c": shape.channels // s, "s": s, "r": rank}
        sizes["q"] = shape.taps
        if self.kernel is None:
            tap = "q" if shape.kernel else ""
            return Network(("rus", "rtc" + tap), "cs", "tu", tap, sizes, shape.kernel)
        kernels = list(zip(shape.directions, self.kernel, shape.kernel, strict=True))
        # A direction of one tap is held by the first factor: some layer must pad and stride.
        coarse = [letter * (own > 1 or size == 1) for letter, own, size in kernels]
        fine = [FINE[letter] * (size > own) for letter, own, size in kernels]
        for letter, own, size in kernels:
            sizes |= {letter: own, FINE[letter]: size // own}
        shared = tuple(map("".join, zip(coarse, fine, strict=True)))
        factors = "rus" + "".join(fine), "rtc" + "".join(coarse)
        return Network(factors, "cs", "tu", "".join(shared), sizes, shape.kernel, shared)

    def second(self, shape: Shape) -> int:
        """Taps of the second factor."""
        return 1 if self.kernel is None else shape.taps // math.prod(self.kernel)

    def parts(self, shape: Shape) -> tuple[int, int]:
        """Outputs and inputs of the second factor, such that a term has the fewest parameters."""
        T, C, Q, own = shape.outputs, shape.channels, shape.taps, self.second(shape)
        pairs = [
            (u, s)
            for u in ([self.outputs[1]] if self.outputs else divisors(T))
            for s in ([self.inputs[1]] if self.inputs else divisors(C))
        ]

        def preference(pair: tuple[int, int]) -> tuple[int, float]:
            u, s = pair
            # Among equal counts prefer even splits of both sides: with a whole side in one factor it is a plain SVD.
            return T * C * Q // (u * s * own) + u * s * own, abs(math.log(u * u / T)) + abs(math.log(s * s / C))

        return min(pairs, key=preference)

    def largest(self, shape: Shape) -> Ranks:
        second = math.prod(self.parts(shape)) * self.second(shape)
        return (min(second, shape.outputs * shape.channels * shape.taps // second),)

    def ladders(self, shape: Shape, step: int) -> list[list[Ranks]]:
        return [single(self.largest(shape)[0], 1)]

    def starts(self, network: Network, X: Tensor) -> Iterator[list[Tensor]]:
        second, first = network.factors
        coarse, fine = ("".join(x for x in letters if x in network.spatial) for letters in (first, second))
        rows, columns = "tc" + coarse, "us" + fine
        arranged = torch.einsum(f"{network.equation.kernel}->{rows + columns}", X)
        U, V = splitting.split(arranged.reshape(network.count(rows), -1), network.sizes["r"])
        A = torch.einsum(f"{rows}r->{first}", U.reshape(network.shape(rows + "r")))
        yield [torch.einsum(f"r{columns}->{second}", V.reshape(network.shape("r" + columns))), A]
