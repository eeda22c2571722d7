"""Factors that stay orthonormal whatever steps an optimiser makes.

Letters: G groups, N rows, R columns of a factor (its rank).

Source: Lezcano-Casado, Martinez-Rubio, "Cheap Orthogonal Constraints in Neural Networks", 2019, arXiv 1901.08428.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ..formats.weights import read
from ..running.exclusive import exclusive
from ..running.guards import unwrap
from .factors import Factor, factors
from .technique import Technique

MAPS = ("cayley", "matrix_exp", "householder")


@exclusive
def constrain_(model: nn.Module, map: str = "cayley") -> nn.Module:
    """Parametrise the factors so that every step of an optimiser leaves them orthonormal.

    A skew-symmetric matrix moves each factor along the orthogonal matrices, `U = base cayley(X - X^T)`, by
    `torch.nn.utils.parametrizations.orthogonal`, which also makes factors orthonormal that are not.

    Args:
        model: with chains of `expand_`, changed in place and returned; make optimisers afterwards.
        map: "cayley", "matrix_exp" or "householder".

    Raises:
        ValueError: for another map, or factors that two layers share or that are constrained already.

    Example:
        >>> import rankwise as rw
        >>> from rankwise.training import deviation, expand_
        >>> model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8)
        >>> _ = constrain_(expand_(model, rw.find(model, x)))
        >>> optimiser = torch.optim.SGD(model.parameters(), 1.0)
        >>> model(x).square().sum().backward(); optimiser.step()
        >>> deviation(release_(model)) < 1e-5
        True
    """
    if map not in MAPS:
        raise ValueError(f"map {map!r} is not one of {', '.join(MAPS)}")
    found = factors(model)
    owners = Counter(id(parameter) for part in unwrap(model).modules() for parameter in part._parameters.values())
    for factor in found:
        if parametrize.is_parametrized(factor.layer, "weight"):
            raise ValueError("the factors are constrained already; release_ them first")
        if owners[id(factor.layer.weight)] > 1:
            raise ValueError("two layers share a factor, which a constraint would separate; use a penalty instead")
    for factor in found:
        with torch.random.fork_rng():  # the parametrisation completes bases by random vectors
            parametrize.register_parametrization(factor.layer, "weight", _Orthonormal(factor, map))
    return model


@exclusive
def release_(model: nn.Module) -> nn.Module:
    """Remove the parametrisation of `constrain_`; the factors keep their values and are plain parameters again."""
    for factor in factors(model):
        if parametrize.is_parametrized(factor.layer, "weight"):
            parametrize.remove_parametrizations(factor.layer, "weight", leave_parametrized=True)
    return model


class Constrained(Technique):
    """`constrain_` for as long as a training by `Loop` lasts."""

    def begin(self, model: nn.Module) -> None:
        constrain_(model)

    def finish(self, model: nn.Module) -> None:
        release_(model)


class _Orthonormal(nn.Module):
    """A weight as its layer stores it, from the free matrix behind an orthonormal factor."""

    def __init__(self, factor: Factor, map: str) -> None:
        super().__init__()
        holder: Any = nn.Module()
        holder.weight = nn.Parameter(factor.matrix().detach().clone())
        parametrizations.orthogonal(holder, "weight", orthogonal_map=map)
        self.orthogonal: Any = holder.parametrizations["weight"][0]
        self.shape = read(factor.layer).shape
        self.factor = factor

    def forward(self, free_GNR: Tensor) -> Tensor:
        with torch.autocast(free_GNR.device.type, enabled=False):  # in bfloat16 it is orthonormal only to 1 %
            return self.factor.stored(self.orthogonal(free_GNR), self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        free: Tensor = self.orthogonal.right_inverse(self.factor.matrix(weight))
        return free
