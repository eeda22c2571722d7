"""Factors that stay orthonormal while they are trained: penalties, a schedule for their weight, a parametrisation.

Letters: G groups, N rows, R columns of a factor (its rank).

Sources: Bansal, Chen, Wang, "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?", 2018, arXiv
1810.09102 (soft, double-sided, SRIP); Yang et al., "Learning Low-rank Deep Neural Networks via Singular Vector
Orthogonality Regularization and Singular Value Sparsification", 2020, arXiv 2004.09031 (division by r^2);
Lezcano-Casado, Martinez-Rubio, "Cheap Orthogonal Constraints in Neural Networks", 2019, arXiv 1901.08428 (the
parametrisation).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ..formats import LowRank
from ..formats.modules import TransposedLinear
from ..formats.weights import read
from ..guards import unwrap
from ..kinds import output_first, site_kind

MAPS = ("cayley", "matrix_exp", "householder")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Factor:
    """A layer of a chain whose weight, read as an N x R matrix for each group, is to have orthonormal columns.

    Attributes:
        layer: the layer.
        groups: of the chain.
        first: whether it stands before the core, so that its rows are the ranks, and not its columns.
    """

    layer: Any
    groups: int
    first: bool

    def matrix(self, weight: Tensor | None = None) -> Tensor:
        """G x N x R, of a weight as the layer stores it, by default its own; gradients flow through it."""
        rows = self._swapped(self.layer.weight if weight is None else weight).flatten(1)
        rows = rows.reshape(self.groups, -1, rows.shape[1])
        return rows.mT if self.first else rows

    def stored(self, matrix_GNR: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The inverse: a matrix as the layer stores it, whose weight with the outputs first has this shape."""
        rows = matrix_GNR.mT if self.first else matrix_GNR
        return self._swapped(rows.reshape(shape))

    def _swapped(self, weight: Tensor) -> Tensor:
        return output_first(site_kind(self.layer), weight, getattr(self.layer, "groups", 1))


def factors(model: nn.Module) -> list[Factor]:
    """The factors of all chains that are to be orthonormal: all layers of `svd` and `tucker2` but the core.

    The core of `tucker2` is the layer with the kernel, that of `svd` the layer with the larger side of the weight, so
    that these are the factors that `expand_` makes orthonormal.

    Raises:
        ValueError: if there are none.
    """
    found: dict[int, Factor] = {}
    for chain in unwrap(model).modules():
        if not isinstance(chain, LowRank) or chain.format not in ("svd", "tucker2"):
            continue
        first, last, groups = chain[0], chain[-1], getattr(chain, "groups", 1)
        if isinstance(first, TransposedLinear):  # it shares the factors of an embedding's chain
            continue
        sides = [Factor(first, groups, True), Factor(last, groups, False)]
        if chain.format == "svd":
            wide = read(first)[0].numel() > read(last).shape[0] // groups
            sides = sides[1:] if wide else sides[:1]
        found.update({id(side.layer): side for side in sides})
    if not found:
        raise ValueError(f"{type(model).__name__} has no chain of svd or tucker2; make some with expand_")
    return list(found.values())


def soft(U_GNR: Tensor) -> Tensor:
    """`||U^T U - I||_F^2`, summed over the groups.

    Example:
        >>> float(soft(2 * torch.eye(3)[None]))
        27.0
    """
    return _excess(U_GNR).square().sum()


def double(U_GNR: Tensor) -> Tensor:
    """`||U^T U - I||_F^2 + ||U U^T - I||_F^2`; of a matrix that is not square one of the two cannot be 0."""
    return soft(U_GNR) + soft(U_GNR.mT)


def srip(U_GNR: Tensor, iterations: int = 2) -> Tensor:
    """`sigma_max(U^T U - I)` by power iterations from a random vector, a lower bound of it that gradients flow through.

    Args:
        U_GNR: the factor.
        iterations: of `v <- (U^T U - I) v`, at least 2; the published number is 2.
    """
    M_GRR = _excess(U_GNR)
    v_GR1 = torch.randn(*M_GRR.shape[:-1], 1, dtype=M_GRR.dtype, device=M_GRR.device)
    for _ in range(iterations - 1):
        v_GR1 = M_GRR @ v_GR1
        length = torch.linalg.vector_norm(v_GR1, dim=1, keepdim=True)
        v_GR1 = v_GR1 / length.clamp_min(torch.finfo(length.dtype).tiny)
    return torch.linalg.vector_norm(M_GRR @ v_GR1, dim=1).sum()


KINDS: dict[str, Callable[[Tensor], Tensor]] = {"soft": soft, "double": double, "srip": srip}


class OrthogonalPenalty:
    """`weight * sum over factors U of p(U)`, with p one of `soft`, `double` and `srip`.

    Args:
        model: with chains of `expand_`.
        kind: "soft", "double" or "srip".
        weight: of the penalty; a schedule may change it.
        normalise: divide the penalty of each factor by the square of its rank, `p(U) / R^2`.

    Raises:
        ValueError: for another kind, a weight below 0, or a model without such chains.

    Example:
        >>> import rankwise as rw
        >>> from rankwise.training import expand_
        >>> model, x = nn.Sequential(nn.Conv2d(8, 16, 3)), torch.randn(2, 8, 9, 9)
        >>> penalty = OrthogonalPenalty(expand_(model, rw.find(model, x)), kind="soft", weight=0.01)
        >>> (model(x).square().mean() + penalty()).backward()
        >>> bool(penalty() < 1e-9)
        True
    """

    def __init__(self, model: nn.Module, kind: str = "soft", weight: float = 1e-2, normalise: bool = False) -> None:
        if kind not in KINDS:
            raise ValueError(f"penalty {kind!r} is not one of {', '.join(KINDS)}; constrain_ keeps factors orthonormal")
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of a penalty is {weight}; it is a number from 0 on")
        self.kind, self.weight, self.normalise = kind, weight, normalise
        self.factors = factors(model)

    def __call__(self) -> Tensor:
        """The penalty of the factors as they are."""
        total: Any = 0.0
        for factor in self.factors:
            U_GNR = factor.matrix()
            total = total + KINDS[self.kind](U_GNR) / (U_GNR.shape[-1] ** 2 if self.normalise else 1)
        result: Tensor = self.weight * total
        return result


class WeightSchedule:
    """Set the weight of a penalty by the share t of the training that is done.

        weight(t) = weight * t / warmup                                               t < warmup
        weight(t) = weight,  or  weight * (1 + cos(pi (t - warmup) / (1 - warmup))) / 2    "constant", "cosine"

    Args:
        penalty: its weight now is the largest one.
        kind: "constant" or "cosine".
        warmup: share of the training, 0 to below 1.

    Raises:
        ValueError: for another kind, or a warm-up out of range.

    Example:
        >>> penalty = OrthogonalPenalty.__new__(OrthogonalPenalty)
        >>> penalty.weight = 0.1
        >>> schedule = WeightSchedule(penalty, "cosine", warmup=0.2)
        >>> [round(schedule(step / 5), 3) for step in range(5)]
        [0.0, 0.1, 0.085, 0.05, 0.015]
    """

    def __init__(self, penalty: OrthogonalPenalty, kind: str = "constant", warmup: float = 0.0) -> None:
        if kind not in SCHEDULES:
            raise ValueError(f"schedule {kind!r} is not one of {', '.join(SCHEDULES)}")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is {warmup}; it is a share of the training from 0 to below 1")
        self.penalty, self.kind, self.warmup, self.most = penalty, kind, warmup, penalty.weight

    def __call__(self, share: float) -> float:
        """Set the weight for a share of the training, 0 to 1, and return it."""
        factor = 1.0
        if share < self.warmup:
            factor = share / self.warmup
        elif self.kind == "cosine":
            factor = (1 + math.cos(math.pi * min((share - self.warmup) / (1 - self.warmup), 1.0))) / 2
        self.penalty.weight = factor * self.most
        return self.penalty.weight


@torch.no_grad()
def deviation(model: nn.Module) -> float:
    """Mean over the factors of `||U^T U - I||_F / sqrt(G R)`: 0 where all are orthonormal."""
    errors = [factor.matrix().double() for factor in factors(model)]
    return sum(float((soft(U_GNR) / (len(U_GNR) * U_GNR.shape[-1])).sqrt()) for U_GNR in errors) / len(errors)


def constrain_(model: nn.Module, map: str = "cayley") -> nn.Module:
    """Parametrise the factors so that every step of an optimiser leaves them orthonormal.

    A skew-symmetric matrix moves each factor along the orthogonal matrices, `U = base cayley(X - X^T)`, by
    `torch.nn.utils.parametrizations.orthogonal`. Factors that are not orthonormal become the nearest one in its sense.

    Args:
        model: with chains of `expand_`, changed in place; make optimisers afterwards, over `original` parameters.
        map: "cayley", "matrix_exp" or "householder".

    Returns:
        The model.

    Raises:
        ValueError: for another map, factors that two layers share, or that are constrained already.

    Example:
        >>> import rankwise as rw
        >>> from rankwise.training import expand_
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
            raise ValueError("a factor is shared by two layers, which a constraint would part; take a penalty instead")
    for factor in found:
        with torch.random.fork_rng():  # the parametrisation completes bases by random vectors
            parametrize.register_parametrization(factor.layer, "weight", _Orthonormal(factor, map))
    return model


def release_(model: nn.Module) -> nn.Module:
    """Take the parametrisation of `constrain_` off; the factors keep their values and are plain parameters again."""
    for factor in factors(model):
        if parametrize.is_parametrized(factor.layer, "weight"):
            parametrize.remove_parametrizations(factor.layer, "weight", leave_parametrized=True)
    return model


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
        with torch.autocast(free_GNR.device.type, enabled=False):  # in bfloat16 it would be orthonormal to 1 % only
            return self.factor.stored(self.orthogonal(free_GNR), self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        free: Tensor = self.orthogonal.right_inverse(self.factor.matrix(weight))
        return free


def _excess(U_GNR: Tensor) -> Tensor:
    """`U^T U - I`."""
    return U_GNR.mT @ U_GNR - torch.eye(U_GNR.shape[-1], dtype=U_GNR.dtype, device=U_GNR.device)
