"""The factors of chains that shall be orthonormal, as matrices.

Letters: G groups, N rows, R columns of a factor (its rank).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import Format, LowRank
from ..layers.kinds import output_first, site_kind
from ..running.exclusive import exclusive
from ..running.guards import unwrap


@dataclass(frozen=True)
class Factor:
    """A layer of a chain whose weight, as an N x R matrix for each group, shall have orthonormal columns.

    The `first` layer stands before the core, so that its rows are the ranks, not its columns.
    """

    layer: Any
    groups: int
    first: bool

    def matrix(self, weight: Tensor | None = None) -> Tensor:
        """G x N x R, from a weight as the layer stores it, by default its own; gradients flow through it."""
        rows = self._swapped(self.layer.weight if weight is None else weight).flatten(1)
        rows = rows.reshape(self.groups, -1, rows.shape[1])
        return rows.mT if self.first else rows

    def stored(self, matrix_GNR: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The inverse: a matrix as the layer stores it; `shape` is the weight's with the outputs first."""
        rows = matrix_GNR.mT if self.first else matrix_GNR
        return self._swapped(rows.reshape(shape))

    def _swapped(self, weight: Tensor) -> Tensor:
        return output_first(site_kind(self.layer), weight, getattr(self.layer, "groups", 1))


def factors(model: nn.Module) -> list[Factor]:
    """The factors of all chains that shall be orthonormal, as their formats say; a ValueError if there are none.

    These are all layers but the core: in `tucker2` the layer with the kernel, in `svd` the layer with the larger side
    of the weight, as in `expand_`.
    """
    found: dict[int, Factor] = {}
    for chain in unwrap(model).modules():
        if isinstance(chain, LowRank):
            groups = getattr(chain, "groups", 1)
            sides = [Factor(chain[0], groups, True), Factor(chain[-1], groups, False)]
            assert isinstance(chain.format, Format)
            kept = zip(sides, chain.format.orthonormal(chain), strict=True)
            found.update({id(side.layer): side for side, is_kept in kept if is_kept})
    if not found:
        raise ValueError(f"{type(model).__name__} has no chain of svd or tucker2; make some with expand_")
    return list(found.values())


def excess(U_GNR: Tensor) -> Tensor:
    """`U^T U - I`."""
    return U_GNR.mT @ U_GNR - torch.eye(U_GNR.shape[-1], dtype=U_GNR.dtype, device=U_GNR.device)


@torch.no_grad()
@exclusive
def deviation(model: nn.Module) -> float:
    """Mean over the factors of `||U^T U - I||_F / sqrt(G R)`: 0 if all are orthonormal."""
    matrices = [factor.matrix().double() for factor in factors(model)]
    squares = [float(excess(U_GNR).square().sum()) / (len(U_GNR) * U_GNR.shape[-1]) for U_GNR in matrices]
    return sum(map(math.sqrt, squares)) / len(squares)
