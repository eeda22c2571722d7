"""Penalties that keep factors near orthonormal ones, and a schedule for their weight.

Letters: G groups, N rows, R columns of a factor (its rank).

Sources: Bansal, Chen, Wang, "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?", 2018, arXiv
1810.09102 (soft, double-sided, SRIP); Yang et al., "Learning Low-rank Deep Neural Networks via Singular Vector
Orthogonality Regularization and Singular Value Sparsification", 2020, arXiv 2004.09031 (division by r^2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .factors import excess, factors
from .schedule import check_warmup, ramp
from .technique import Step, Technique

SCHEDULES = ("constant", "cosine")


def soft(U_GNR: Tensor) -> Tensor:
    """`||U^T U - I||_F^2`, summed over the groups.

    Example:
        >>> float(soft(2 * torch.eye(3)[None]))
        27.0
    """
    return excess(U_GNR).square().sum()


def double(U_GNR: Tensor) -> Tensor:
    """`||U^T U - I||_F^2 + ||U U^T - I||_F^2`; for a matrix that is not square, one of the two cannot be 0."""
    return soft(U_GNR) + soft(U_GNR.mT)


def srip(U_GNR: Tensor, iterations: int = 2) -> Tensor:
    """A lower bound of `sigma_max(U^T U - I)` with gradients: `v <- (U^T U - I) v`, twice as published, v random."""
    M_GRR = excess(U_GNR)
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
        weight: weight of the penalty; a schedule may change it.
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
        if not 0 <= weight < float("inf"):
            raise ValueError(f"the weight of a penalty is {weight}; it must be 0 or more")
        self.kind, self.weight, self.normalise = kind, weight, normalise
        self.factors = factors(model)

    def __call__(self) -> Tensor:
        """The penalty of the factors now."""
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
        check_warmup(warmup)
        self.penalty, self.kind, self.warmup, self.most = penalty, kind, warmup, penalty.weight

    def __call__(self, share: float) -> float:
        """Set the weight for a share of the training, 0 to 1, and return it."""
        self.penalty.weight = ramp(share, self.warmup, falls=self.kind == "cosine") * self.most
        return self.penalty.weight


class KeptOrthogonal(Technique):
    """`OrthogonalPenalty` with a weight that follows a `WeightSchedule`, as a technique of `Loop`."""

    def __init__(self, kind: str, weight: float, schedule: str = "constant") -> None:
        self.kind, self.weight, self.schedule = kind, weight, schedule

    def begin(self, model: nn.Module) -> None:
        self._penalty = OrthogonalPenalty(model, self.kind, self.weight)
        self._scheduled = WeightSchedule(self._penalty, self.schedule)

    def before_step(self, step: Step) -> None:
        self._scheduled(step.share)

    def penalty(self) -> Tensor:
        return self._penalty()
