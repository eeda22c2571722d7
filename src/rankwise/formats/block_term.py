"""Block terms: a sum of small Tucker blocks, run side by side as the groups of one bottleneck.

Letters: t outputs, c channels, q taps, n blocks, a, b bonds; for a matrix i, j parts of the inputs, b, c their bonds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linalg import splitting, tucker2
from ..linalg.metric import Identity
from ..network.site import Site
from .base import Ranks
from .ladders import proportional, split_number
from .multilinear import Multilinear
from .network import Network
from .shape import Modes, Shape

# Numbers of blocks that curves try.
BLOCKS = (2, 4, 8)
# Sweeps for each block of the start; the fit of all blocks together does the rest.
SWEEPS = 2


@dataclass(frozen=True, kw_only=True)
class BlockTerm(Multilinear):
    """`W[t, c, q] = sum_n sum A[n, t, a] G[n, a, b, q] B[n, b, c]`: 1 x 1 -> grouped k x k -> 1 x 1.

    Ranks are (blocks, output rank, channel rank), both ranks per block. A matrix, with its inputs read as two modes:
    `W[t, i j] = sum_n sum A[n, t, a] G[n, a, b, c] B[n, b, i] C[n, c, j]`.

    Args:
        inputs: sizes of the two modes of a matrix's inputs, by default as equal as possible.

    Source: De Lathauwer, "Decompositions of a Higher-Order Tensor in Block Terms", 2008; Ye et al., "Learning Compact
    Recurrent Neural Networks with Block-Term Tensor Decomposition", 2018, arXiv 1712.05134.
    """

    inputs: Modes | None = None

    name = "btd"
    summary = "block terms: 1 x 1, grouped k x k, 1 x 1"
    use = "convolutions whose channels fall into groups that hardly meet: small Tucker blocks side by side"
    random = 31

    def unfit(self, site: Site) -> str | None:
        shape = Shape.of_site(site)
        if self.inputs and shape.taps > 1:
            return f"{self.name} splits inputs of matrices, and here is a kernel; use svd"
        if why := shape.unlike(None, self.inputs):
            return f"{self.name} {why}; use svd"
        if shape.taps == 1 and 1 in self.modes(shape):
            return f"{self.name} needs a number of inputs that is not prime; use svd"
        return None

    def modes(self, shape: Shape) -> Modes:
        """Sizes of the two modes of a matrix's inputs."""
        return self.inputs or split_number(shape.channels, 2)

    def network(self, shape: Shape, ranks: Ranks) -> Network:
        n, a, b, *c = ranks
        sizes = {"g": shape.groups, "t": shape.outputs, "n": n, "a": a, "b": b, "q": shape.taps}
        if shape.taps > 1:
            return Network(("nbc", "nabq", "tna"), "c", "t", "q", {**sizes, "c": shape.channels}, shape.kernel)
        i, j = self.modes(shape)
        tap = "q" if shape.kernel else ""
        sizes |= {"i": i, "j": j, "c": c[0]}
        return Network(("ncj" + tap, "nbi", "nabc", "tna"), "ij", "t", tap, sizes, shape.kernel)

    def largest(self, shape: Shape) -> Ranks:
        blocks = min(shape.outputs, shape.channels)
        if shape.taps > 1:
            return (blocks, shape.outputs, shape.channels)
        i, j = self.modes(shape)
        return (blocks, min(shape.outputs, shape.channels), i, j)

    def ladders(self, shape: Shape, step: int) -> list[list[Ranks]]:
        blocks, *limits = self.largest(shape)
        ladders = [
            [(n, *ranks) for ranks in proportional(tuple(max(1, limit // n) for limit in limits), step)]
            for n in BLOCKS
            if n <= blocks
        ]
        if shape.taps > 1:
            return ladders
        # The inputs of a block span at most b * c outputs; a larger output rank only makes the fit singular.
        return [list(dict.fromkeys((n, min(a, b * c), b, c) for n, a, b, c in ladder)) for ladder in ladders]

    def starts(self, network: Network, X: Tensor) -> Iterator[list[Tensor]]:
        """Block after block, each the best for what the blocks before it left."""
        sizes = network.sizes
        # Blocks live in the leading directions of the outputs and channels, as many as all of them hold together.
        A_TT, rest = splitting.leading(X.flatten(1), sizes["n"] * sizes["a"])
        rest = rest.reshape(-1, X.shape[1], X.shape[2:].numel())
        B_CC, rest = splitting.leading(rest.movedim(1, 0).flatten(1), sizes["n"] * sizes["b"])
        rest = rest.reshape(-1, A_TT.shape[1], X.shape[2:].numel()).movedim(0, 1)
        metric, blocks = Identity(rest[0].numel(), X.device), []
        for _ in range(sizes["n"]):
            fit = tucker2.fit(rest, metric, min(sizes["a"], rest.shape[0]), sizes["b"], SWEEPS)
            blocks.append(fit)
            rest = rest - fit.dense()
        A = torch.stack([A_TT @ fit.A_TR for fit in blocks], 1)
        B = torch.stack([(B_CC @ fit.B_CS).mT for fit in blocks])
        G = torch.stack([fit.G_RSQ for fit in blocks])
        if "i" not in network.sizes:
            yield [B, G, A]
            return
        cores, bases = [], []
        for fit in blocks:  # the core's last mode still is all of j: split off a basis
            basis, rest_of = splitting.split(fit.G_RSQ.flatten(0, 1).mT, network.sizes["c"])
            bases.append(basis.mT)
            cores.append(rest_of.mT.reshape(*fit.G_RSQ.shape[:2], -1))
        last = torch.stack(bases)
        if network.spatial:
            last = last[..., None]
        yield [last, B, torch.stack(cores), A]
