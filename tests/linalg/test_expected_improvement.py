"""Bayesian optimisation with a constraint: known optima, points never tried, and the formulas by brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rankwise.linalg.expected_improvement import Box, expected_improvement, matern, minimise, predict

pytestmark = pytest.mark.usefixtures("one_thread")
CENTRE = torch.tensor([0.6, 0.9, 0.5, 0.7, 0.8], dtype=torch.float64)


def box(most: float) -> Box:
    """Five ratios whose sum may not exceed a limit."""
    return Box(
        low_D=torch.full((5,), 0.2, dtype=torch.float64),
        high_D=torch.full((5,), 1.001, dtype=torch.float64),
        lengths_D=torch.ones(5, dtype=torch.float64),
        feasible=lambda points_MD: points_MD.sum(1) <= most,
    )


@pytest.mark.parametrize("most, expected", [(10.0, 0.0), (3.0, 0.05)])
def test_the_optimum_of_a_quadratic_in_fifty_trials(most: float, expected: float) -> None:
    """At a sum of 3 the optimum is the centre moved by 0.1 in each direction, with a loss of 0.05."""
    seen: list[Tensor] = []

    def bowl(point_D: Tensor) -> float:
        seen.append(point_D)
        return float((point_D - CENTRE).square().sum())

    best_D = minimise(bowl, [0.4] * 5, box(most), trials=50, startup=6, seed=0)
    assert len(seen) == 50
    assert all(float(each.sum()) <= most and float(each.min()) >= 0.2 and float(each.max()) <= 1.001 for each in seen)
    assert expected <= bowl(best_D) + 1e-12 < expected + 0.01
    assert bowl(seen[0]) > 0.4


def test_the_first_point_counts_and_the_seed_decides() -> None:
    def far(point_D: Tensor) -> float:
        return float((point_D - 0.4).abs().sum())

    def third(point_D: Tensor) -> float:
        return float(point_D[2])

    assert minimise(far, [0.4] * 5, box(10.0), trials=8, startup=3, seed=0).tolist() == [0.4] * 5
    first, second, other = (minimise(third, [0.4] * 5, box(10.0), trials=8, startup=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_what_cannot_be_tried() -> None:
    with pytest.raises(ValueError, match="does not meet the constraint"):
        minimise(lambda point: 0.0, [0.9] * 5, box(3.0), trials=2, startup=1, seed=0)
    with pytest.raises(ValueError, match="loss of trial 0 is nan"):
        minimise(lambda point: math.nan, [0.4] * 5, box(3.0), trials=2, startup=1, seed=0)
    with pytest.raises(ValueError, match="random points meets the constraint"):
        box(0.5).draw(1, torch.Generator().manual_seed(0))


def test_the_process_as_normal_distributions_say() -> None:
    """Mean and variance given the values, from the joint normal distribution of all points; improvement by sampling."""
    generator = torch.Generator().manual_seed(0)
    known, asked = (torch.rand(count, 2, generator=generator, dtype=torch.float64) for count in (6, 3))
    values = torch.randn(6, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([0.5, 0.8], dtype=torch.float64)
    both = torch.cat([known, asked])
    K = torch.zeros(9, 9, dtype=torch.float64)
    for i in range(9):
        for j in range(9):
            s = math.sqrt(5) * float((((both[i] - both[j]) / lengths) ** 2).sum().sqrt())
            K[i, j] = (1 + s + s * s / 3) * math.exp(-s)
    torch.testing.assert_close(matern(both, both, lengths), K, rtol=1e-6, atol=1e-7)
    mean, deviation = predict(known, values, asked, lengths)
    solved = torch.linalg.solve(K[:6, :6] + 1e-6 * torch.eye(6).double(), K[:6, 6:])
    torch.testing.assert_close(mean, solved.mT @ values, rtol=1e-4, atol=1e-5)
    variance = (K[6:, 6:] - K[6:, :6] @ solved).diagonal()
    torch.testing.assert_close(deviation.square(), variance, rtol=1e-3, atol=1e-5)
    draws = mean + deviation * torch.randn(400_000, 3, generator=generator, dtype=torch.float64)
    gains = (0.2 - draws).clamp_min(0).mean(0)
    torch.testing.assert_close(expected_improvement(mean, deviation, 0.2), gains, rtol=0.02, atol=1e-3)
