"""Backward elimination against least squares solved anew, and against all subsets."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from rankwise.linalg.elimination import DAMPING, eliminate, leverages, refit
from rankwise.linalg.metric import Dense, Metric, Sampled


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Metric]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), Dense(mix @ mix.mT / inputs)


def least(W_TD: Tensor, sigma_DD: Tensor, kept: list[int]) -> float:
    """The least squared error with some inputs, by a factor of the moment and a general solver."""
    values, vectors = torch.linalg.eigh(sigma_DD)
    root_DD = vectors * values.clamp_min(0).sqrt()
    target, given = (W_TD @ root_DD).mT, root_DD[kept].mT
    solved = torch.linalg.lstsq(given, target, driver="gelsd").solution
    return float((target - given @ solved).square().sum())


def damped(metric: Metric) -> Tensor:
    sigma = metric.dense().clone()
    sigma.diagonal().add_(DAMPING * sigma.diagonal().mean())
    return sigma


@pytest.mark.parametrize("step", [1, 4])
def test_errors_are_those_of_least_squares(step: int) -> None:
    W, metric = problem(5, 12)
    order, errors = eliminate(W, metric, step)
    assert sorted(order.tolist()) == list(range(12))
    assert list(errors) == list(range(0, 13, step))
    for count, error in errors.items():
        kept = order[12 - count :].tolist()
        expected = least(W, damped(metric), kept) if kept else float((W @ damped(metric) * W).sum())
        assert error == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_each_input_that_leaves_is_the_cheapest() -> None:
    W, metric = problem(3, 8, seed=1)
    order = eliminate(W, metric).order_D.tolist()
    for gone in range(7):
        left = order[gone:]
        costs = {out: least(W, damped(metric), [one for one in left if one != out]) for out in left}
        assert order[gone] == min(costs, key=costs.__getitem__)


def test_it_comes_near_the_best_of_all_subsets() -> None:
    for seed in range(5):
        W, metric = problem(4, 9, seed)
        errors = eliminate(W, metric).errors
        for count in (3, 5, 7):
            best = min(least(W, damped(metric), list(kept)) for kept in combinations(range(9), count))
            assert best * (1 - 1e-9) <= errors[count] <= 1.35 * best


def test_more_is_never_worse() -> None:
    W, metric = problem(6, 20, seed=2)
    errors = list(eliminate(W, metric).errors.values())
    assert all(more <= fewer + 1e-12 for fewer, more in pairwise(errors))
    assert errors[-1] == 0


def test_inputs_that_repeat_others_cost_nothing() -> None:
    """A planted answer: eight inputs are copies or sums of the other four."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    given = torch.cat([rows, rows, rows @ torch.randn(4, 4, generator=generator, dtype=torch.float64)], 1)
    W = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    metric = Dense(given.mT @ given / 500)
    order, errors = eliminate(W, metric)
    assert errors[4] < 1e-3 * metric.energy(W)
    kept = order[8:].sort().values
    dense = torch.zeros_like(W)
    dense[:, kept] = refit(W, metric, kept)
    assert metric.energy(W - dense) < 1e-6 * metric.energy(W)


def test_inputs_that_never_move_leave_first() -> None:
    sigma = torch.diag(torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=torch.float64))
    assert set(eliminate(torch.ones(2, 4, dtype=torch.float64), Dense(sigma)).order_D[:2].tolist()) == {0, 2}


def test_refit_is_the_least_squares_solution() -> None:
    W, metric = problem(4, 10, seed=4)
    kept = torch.tensor([1, 4, 5, 9])
    dense = torch.zeros_like(W)
    dense[:, kept] = refit(W, metric, kept)
    assert metric.energy(W - dense) == pytest.approx(least(W, metric.dense(), kept.tolist()), rel=1e-3)
    assert torch.equal(refit(W, metric, torch.arange(10)), W)


def test_sampled_rows_give_the_same_as_their_moment() -> None:
    generator = torch.Generator().manual_seed(5)
    rows, W = torch.randn(40, 8, generator=generator).double(), torch.randn(3, 8, generator=generator).double()
    whole = eliminate(W, Dense(rows.mT @ rows / 40)).errors
    for count, error in eliminate(W, Sampled(rows / 40**0.5)).errors.items():
        assert error == pytest.approx(whole[count], rel=1e-6, abs=1e-9)


def test_an_order_that_is_given() -> None:
    """Errors along a given order are those of refitting what is left, and the order is returned."""
    generator = torch.Generator().manual_seed(3)
    W = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    rows = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    metric = Dense(rows.mT @ rows / 40)
    order = torch.randperm(8, generator=generator)
    found = eliminate(W, metric, step=2, order_D=order)
    assert torch.equal(found.order_D, order)
    assert list(found.errors) == [0, 2, 4, 6, 8]
    for kept, error in found.errors.items():
        left = W.clone()
        places = order[8 - kept :]
        left[:, places] -= refit(W, metric, places)
        assert error == pytest.approx(metric.energy(left), rel=2e-3, abs=1e-9)


def test_leverages_are_those_of_the_definition() -> None:
    rows = torch.randn(30, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    C = rows.mT @ rows / 30
    expected = (C @ torch.linalg.inv(C + C.diagonal().mean() * torch.eye(6).double())).diagonal()
    torch.testing.assert_close(leverages(Dense(C)), expected)


def units(count: int, together: int) -> Tensor:
    """Inputs that leave together: u, u + count, u + 2 count and so on."""
    return torch.arange(count * together).reshape(together, count).mT


@pytest.mark.parametrize("step", [1, 3])
def test_units_of_several_inputs_leave_together(step: int) -> None:
    W, metric = problem(5, 12, seed=6)
    parts = units(6, 2)
    order, errors = eliminate(W, metric, step, parts_UP=parts)
    assert sorted(order.tolist()) == list(range(6))
    assert list(errors) == list(range(0, 7, step))
    for count, error in errors.items():
        kept = parts[order[6 - count :]].flatten().tolist()
        expected = least(W, damped(metric), kept) if kept else float((W @ damped(metric) * W).sum())
        assert error == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_each_unit_that_leaves_is_the_cheapest() -> None:
    W, metric = problem(3, 15, seed=7)
    parts = units(5, 3)
    order = eliminate(W, metric, parts_UP=parts).order_D.tolist()
    for gone in range(4):
        left = order[gone:]
        costs = {
            out: least(W, damped(metric), parts[[one for one in left if one != out]].flatten().tolist()) for out in left
        }
        assert order[gone] == min(costs, key=costs.__getitem__)
