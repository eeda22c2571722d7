"""Bayesian optimisation in a box with a constraint: a Gaussian process says where a better value is most likely.

Letters: N points that were tried, M candidates, D numbers of a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .symmetric import cholesky

NOISE = 1e-6  # of a standardised value: keeps the process defined where two points are close
# Candidates for each proposal: so many drawn anywhere, and so many around the best points at each of some distances,
# which are shares of the box.
ANYWHERE, AROUND = 512, 256
DISTANCES = (0.2, 0.05, 0.01)
# Factors of the length scales that are compared by their likelihood.
FACTORS = (0.25, 0.5, 1.0, 2.0)
# Rounds in which feasible points are drawn before the search for them is given up.
PATIENCE = 400


@dataclass(frozen=True, kw_only=True)
class Box:
    """Where points lie.

    Attributes:
        low_D, high_D: least and largest numbers.
        lengths_D: length scale of each number in the process, as a share of its range.
        feasible: which of some points, M x D, may be tried.
    """

    low_D: Tensor
    high_D: Tensor
    lengths_D: Tensor
    feasible: Callable[[Tensor], Tensor]

    def unit(self, points_MD: Tensor) -> Tensor:
        """The points in the unit box."""
        return (points_MD - self.low_D) / (self.high_D - self.low_D)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Feasible points drawn uniformly, up to `count`; a ValueError if none is found."""
        found: list[Tensor] = []
        for _ in range(PATIENCE):
            unit_MD = torch.rand(max(count, ANYWHERE), len(self.low_D), generator=generator, dtype=torch.float64)
            points_MD = self.low_D + (self.high_D - self.low_D) * unit_MD
            found.append(points_MD[self.feasible(points_MD)])
            if sum(map(len, found)) >= count:
                break
        points_MD = torch.cat(found)[:count]
        if not len(points_MD):
            raise ValueError(
                f"none of {PATIENCE * max(count, ANYWHERE):,} random points meets the constraint; widen it"
            )
        return points_MD


def minimise(
    loss: Callable[[Tensor], float], first_D: Sequence[float], box: Box, *, trials: int, startup: int, seed: int
) -> Tensor:
    """The point with the least loss of so many trials; points that are not feasible are never tried.

    Args:
        loss: of a point.
        first_D: the first point, which must be feasible.
        trials: in all, at least 1.
        startup: how many of them come before the process proposes: the first, and random ones.
        seed: of everything random.

    Raises:
        ValueError: if the first point is not feasible, or a loss is not finite.

    Source: Jones, Schonlau, Welch, "Efficient Global Optimization of Expensive Black-Box Functions", 1998.
    """
    generator = torch.Generator().manual_seed(seed)
    points_ND, values = torch.tensor([list(first_D)], dtype=torch.float64), list[float]()
    if not bool(box.feasible(points_ND)[0]):
        raise ValueError(f"the first point {list(first_D)} does not meet the constraint")
    for trial in range(trials):
        if trial:
            known_N = torch.tensor(values, dtype=torch.float64)
            random = trial < startup
            new_D = box.draw(1, generator)[0] if random else propose(points_ND, known_N, box, generator)
            points_ND = torch.cat([points_ND, new_D[None]])
        values.append(loss(points_ND[-1]))
        if not math.isfinite(values[-1]):
            raise ValueError(f"the loss of trial {trial} is {values[-1]}; it must be a finite number")
    return points_ND[min(range(trials), key=values.__getitem__)]


def propose(points_ND: Tensor, values_N: Tensor, box: Box, generator: torch.Generator) -> Tensor:
    """`argmax over feasible x of E max(best - f(x), 0)`, `f` a Gaussian process through the values; D.

    The kernel is Matern's of smoothness 5/2. All length scales are multiplied by the one of `FACTORS` that makes the
    values most likely. Candidates are drawn anywhere, and around the three best points.
    """
    spread = float(values_N.std(correction=0)) or 1.0
    scaled_N = (values_N - values_N.mean()) / spread
    best_ND = points_ND[scaled_N.argsort()[:3]]
    centres_MD = best_ND.repeat(-(-AROUND // len(best_ND)), 1)
    size = (len(centres_MD), len(box.low_D))
    moved = [
        centres_MD + share * (box.high_D - box.low_D) * torch.randn(size, generator=generator, dtype=torch.float64)
        for share in DISTANCES
    ]
    around_MD = torch.minimum(torch.maximum(torch.cat(moved), box.low_D), box.high_D)
    candidates_MD = torch.cat([box.draw(ANYWHERE, generator), around_MD[box.feasible(around_MD)]])
    unit_ND = box.unit(points_ND)
    factor = max(FACTORS, key=lambda each: _likelihood(unit_ND, scaled_N, each * box.lengths_D))
    mean_M, deviation_M = predict(unit_ND, scaled_N, box.unit(candidates_MD), factor * box.lengths_D)
    return candidates_MD[expected_improvement(mean_M, deviation_M, float(scaled_N.min())).argmax()]


def predict(unit_ND: Tensor, values_N: Tensor, unit_MD: Tensor, lengths_D: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the process at M points, after N values.

    Example:
        >>> known = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> mean, deviation = predict(known, known[:, 0], known, torch.ones(1, dtype=torch.float64))
        >>> mean.round(decimals=3).tolist(), deviation.round(decimals=2).tolist()
        ([0.0, 1.0], [0.0, 0.0])
    """
    L_NN, K_MN = _root(unit_ND, lengths_D), matern(unit_MD, unit_ND, lengths_D)
    mean_M = K_MN @ torch.cholesky_solve(values_N[:, None], L_NN)[:, 0]
    half_NM = torch.linalg.solve_triangular(L_NN, K_MN.mT, upper=False)
    return mean_M, (1 - half_NM.square().sum(0)).clamp_min(0).sqrt()


def matern(a_MD: Tensor, b_ND: Tensor, lengths_D: Tensor) -> Tensor:
    """`(1 + s + s^2 / 3) exp(-s)`, `s = sqrt(5) norm((a - b) / lengths)`, M x N."""
    s_MN = math.sqrt(5) * torch.cdist(a_MD / lengths_D, b_ND / lengths_D)
    return (1 + s_MN + s_MN.square() / 3) * (-s_MN).exp()


def expected_improvement(mean_M: Tensor, deviation_M: Tensor, best: float) -> Tensor:
    """`E max(best - f, 0)` for normally distributed `f`.

    Example:
        >>> found = expected_improvement(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]), best=0.0)
        >>> [round(each, 4) for each in found.tolist()]
        [0.3989, 0.0]
    """
    gain_M = best - mean_M
    z_M = gain_M / deviation_M.clamp_min(1e-12)
    density_M = (-z_M.square() / 2).exp() / math.sqrt(2 * math.pi)
    return (gain_M * torch.special.ndtr(z_M) + deviation_M * density_M).clamp_min(0)


def _root(unit_ND: Tensor, lengths_D: Tensor) -> Tensor:
    K_NN = matern(unit_ND, unit_ND, lengths_D)
    K_NN.diagonal().add_(NOISE)
    return cholesky(K_NN)


def _likelihood(unit_ND: Tensor, values_N: Tensor, lengths_D: Tensor) -> float:
    """Logarithm of the likelihood of the values, up to a constant."""
    L_NN = _root(unit_ND, lengths_D)
    solved_N = torch.cholesky_solve(values_N[:, None], L_NN)[:, 0]
    return float(-0.5 * values_N @ solved_N - L_NN.diagonal().log().sum())
