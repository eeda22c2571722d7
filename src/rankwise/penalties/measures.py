"""Functions of singular values that are small for matrices near low rank, with their derivatives.

Letters: K singular values, largest first.

Sources: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007; Rudelson and
Vershynin, "Sampling from large matrices", 2007, arXiv math/0503442 (stable rank); Yang et al., "DeepHoyer", 2019, arXiv
1908.09979 (squared Hoyer, there of weights); Nie, Huang, Ding, "Low-Rank Matrix Recovery via Efficient Schatten p-Norm
Minimization", AAAI 2012; Fazel, Hindi, Boyd, "Log-det heuristic for matrix rank minimization", ACC 2003.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..linalg.spectrum import effective_rank_of, stable_rank_of
from ..names import made_of

LEAST_SHARE = 1e-12  # the logarithm of a vanished singular value


@dataclass(frozen=True, kw_only=True)
class Measure(ABC):
    """A function f of singular values; of a zero matrix it is 0, and so are its derivatives.

    Law, tested: `slope` is the gradient of `value`. The gradient in the matrix is then `U diag(slope) V^T`, which needs
    no derivative of a singular vector, so that repeated singular values do no harm.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    # f(c s) = f(s): it does not hold the weights down, so it comes with a weight decay.
    scale_invariant: ClassVar[bool] = False

    @abstractmethod
    def value(self, s_K: Tensor) -> Tensor:
        """f(s), a scalar."""

    @abstractmethod
    def slope(self, s_K: Tensor) -> Tensor:
        """df/ds, K; the largest value is above 0."""


@dataclass(frozen=True, kw_only=True)
class Nuclear(Measure):
    """`sum_i s_i`, the convex hull of the rank.

    Example:
        >>> float(Nuclear().value(torch.tensor([2.0, 1.0])))
        3.0
    """

    name: ClassVar[str] = "nuclear"
    summary: ClassVar[str] = "sum of the singular values"

    def value(self, s_K: Tensor) -> Tensor:
        return s_K.sum()

    def slope(self, s_K: Tensor) -> Tensor:
        return torch.ones_like(s_K)


@dataclass(frozen=True, kw_only=True)
class Schatten(Measure):
    """`sum_i (s_i^2 + smooth^2)^(p/2) - smooth^p`; for p below 1 nearer to the rank than the nuclear norm.

    Args:
        p: the exponent, above 0.
        smooth: singular values below it are hardly pulled; with 0 the slope at 0 is infinite if p < 1.
    """

    name: ClassVar[str] = "schatten"
    summary: ClassVar[str] = "sum of powers of the singular values"

    p: float = 0.5
    smooth: float = 1e-2

    def __post_init__(self) -> None:
        if not (self.p > 0 and self.smooth > 0):
            raise ValueError(f"schatten: p is {self.p} and smooth {self.smooth}; both must be above 0")

    def value(self, s_K: Tensor) -> Tensor:
        return ((s_K.square() + self.smooth**2) ** (self.p / 2) - self.smooth**self.p).sum()

    def slope(self, s_K: Tensor) -> Tensor:
        return self.p * s_K * (s_K.square() + self.smooth**2) ** (self.p / 2 - 1)


@dataclass(frozen=True, kw_only=True)
class SquaredHoyer(Measure):
    """`(sum_i s_i)^2 / sum_i s_i^2`, between 1 and the rank.

    Example:
        >>> float(SquaredHoyer().value(torch.ones(4)))
        4.0
    """

    name: ClassVar[str] = "hoyer"
    summary: ClassVar[str] = "square of the sum of the singular values over the sum of their squares"
    scale_invariant: ClassVar[bool] = True

    def value(self, s_K: Tensor) -> Tensor:
        return s_K.sum().square() / s_K.square().sum()

    def slope(self, s_K: Tensor) -> Tensor:
        total, squares = s_K.sum(), s_K.square().sum()
        return 2 * total / squares * (1 - total / squares * s_K)


@dataclass(frozen=True, kw_only=True)
class EffectiveRank(Measure):
    """`exp(H)`, `H = -sum_i p_i log p_i`, `p = s / sum_j s_j`; slope `-exp(H) (log p + H) / sum_j s_j`.

    Example:
        >>> round(float(EffectiveRank().value(torch.tensor([2.0, 1.0]))), 6)
        1.889882
    """

    name: ClassVar[str] = "effective_rank"
    summary: ClassVar[str] = "exponential of the entropy of the singular values"
    scale_invariant: ClassVar[bool] = True

    def value(self, s_K: Tensor) -> Tensor:
        return effective_rank_of(s_K)

    def slope(self, s_K: Tensor) -> Tensor:
        logs_K = (s_K / s_K.sum()).clamp_min(LEAST_SHARE).log()
        rank = effective_rank_of(s_K)
        return -rank * (logs_K + rank.log()) / s_K.sum()


@dataclass(frozen=True, kw_only=True)
class StableRank(Measure):
    """`sum_i s_i^2 / s_1^2`."""

    name: ClassVar[str] = "stable_rank"
    summary: ClassVar[str] = "energy in units of the largest singular value's"
    scale_invariant: ClassVar[bool] = True

    def value(self, s_K: Tensor) -> Tensor:
        return stable_rank_of(s_K)

    def slope(self, s_K: Tensor) -> Tensor:
        slope_K = 2 * s_K / s_K[0].square()
        slope_K[0] -= 2 * stable_rank_of(s_K) / s_K[0]
        return slope_K


@dataclass(frozen=True, kw_only=True)
class LogDet(Measure):
    """`sum_i log(1 + s_i / epsilon)`: small singular values are pulled hardest.

    It is `sum_i log(s_i + epsilon)` without the constant, so that a zero matrix has 0.

    Args:
        epsilon: above 0, in the unit of the weights.
    """

    name: ClassVar[str] = "log_det"
    summary: ClassVar[str] = "sum of the logarithms of the singular values"

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"log_det: epsilon is {self.epsilon}; it must be above 0")

    def value(self, s_K: Tensor) -> Tensor:
        return (s_K / self.epsilon).log1p().sum()

    def slope(self, s_K: Tensor) -> Tensor:
        return 1 / (s_K + self.epsilon)


MEASURES: dict[str, type[Measure]] = {
    measure.name: measure for measure in (Nuclear, Schatten, SquaredHoyer, EffectiveRank, StableRank, LogDet)
}


def get_measure(measure: str | Measure) -> Measure:
    """A measure by its name, with settings after a colon: "nuclear", "schatten:p=0.7".

    Raises:
        ValueError: for an unknown name (with near ones) or setting, or a value that it cannot have.

    Example:
        >>> get_measure("schatten:p=0.7")
        Schatten(p=0.7, smooth=0.01)
    """
    if isinstance(measure, Measure):
        return measure
    read: Measure = made_of("measure", measure, MEASURES)
    return read
