"""The regression target, its guard on held-out samples, and the fit of one site."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankwise.factorisation.fitting import (
    BETAS,
    LEAST_ROWS_PER_INPUT,
    choose_beta,
    fit_site,
    held_out_error,
    regression_target,
)
from rankwise.network.site import Call, Site
from rankwise.statistics.accumulator import Accumulator
from rankwise.statistics.moments import Moments

D, T = 12, 7


def moments_of(x: Tensor, y: Tensor) -> Moments:
    accumulator = Accumulator()
    for part_x, part_y in zip(x.split(50), y.split(50), strict=True):
        accumulator.update(part_x[None], part_y[None])
    return accumulator.moments()


def drifted(rows: int, drift: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight; inputs of the compressed network, the dense ones turned and shifted by `drift`; dense outputs."""
    generator = torch.Generator().manual_seed(seed)
    W_TD = torch.randn(T, D, generator=generator)
    turn = torch.eye(D) + drift * torch.randn(D, D, generator=generator) / D**0.5
    x = torch.randn(rows, D, generator=generator)
    return W_TD.double()[None], x @ turn.T + drift, x @ W_TD.T + 0.5


def linear(outputs: int = T, inputs: int = D) -> Site:
    call = Call(rows=1, in_positions=1, in_size=(), out_size=())
    return Site(name="fc", kind="linear", weight_shape=(outputs, inputs), calls=(call,))


def test_the_target_is_the_least_squares_solution() -> None:
    weight, x, y = drifted(2000, 0.7)
    solved = torch.linalg.lstsq((x - x.mean(0)).double(), (y - y.mean(0)).double()).solution.mT
    target = regression_target(weight, moments_of(x, y))[0]
    assert (target - solved).norm() < 2e-3 * solved.norm()
    assert (weight[0] - solved).norm() > 0.1 * solved.norm()


def test_half_a_step_is_half_way() -> None:
    weight, x, y = drifted(500, 0.7)
    full = (min(T, D),)
    none, half, whole = (
        fit_site(linear(), weight[0], "svd", full, moments_of(x, y), beta)[0].dense() for beta in (0.0, 0.5, 1.0)
    )
    assert torch.allclose(none, weight[0], rtol=1e-9)
    assert torch.allclose(whole, regression_target(weight, moments_of(x, y))[0], rtol=1e-9)
    assert torch.allclose(half, (none + whole) / 2, rtol=1e-9)


def test_where_the_inputs_agree_the_target_is_the_weight() -> None:
    weight, x, y = drifted(500, 0.0)
    target = regression_target(weight, moments_of(x, y))
    assert (target - weight).norm() < 1e-5 * weight.norm()


def test_inputs_that_never_fire_keep_the_weight() -> None:
    weight, x, y = drifted(500, 0.3)
    x[:, 3] = 0
    target = regression_target(weight, moments_of(x, y))
    assert torch.allclose(target[..., 3], weight[..., 3], atol=1e-4)


@pytest.mark.parametrize("beta", BETAS)
def test_the_held_out_error_is_the_error_on_the_samples(beta: float) -> None:
    weight, x, y = drifted(800, 0.5)
    fitted, held = moments_of(x[:600], y[:600]), moments_of(x[600:], y[600:])
    target = torch.lerp(weight, regression_target(weight, fitted), beta)
    bias = y[:600].double().mean(0) - target[0] @ x[:600].double().mean(0)
    left = y[600:].double() - x[600:].double() @ target[0].mT - bias
    constant = (y[600:].double() - y[600:].double().mean(0)).square().sum(1).mean()
    direct = left.square().sum(1).mean() - constant
    assert held_out_error(target, fitted, held) == pytest.approx(float(direct), rel=1e-4, abs=1e-4)


def test_beta_follows_where_inputs_differ_and_data_is_plentiful() -> None:
    weight, x, y = drifted(4000, 0.7)
    assert choose_beta(weight, moments_of(x[:3000], y[:3000]), moments_of(x[3000:], y[3000:])) > 0


@pytest.mark.parametrize("missing, expected", [(1, 0.0), (0, 1.0)])
def test_too_few_rows_are_not_trusted(missing: int, expected: float) -> None:
    weight, x, y = drifted(LEAST_ROWS_PER_INPUT * D + 400, 0.7)
    rows = LEAST_ROWS_PER_INPUT * D - missing
    assert choose_beta(weight, moments_of(x[:rows], y[:rows]), moments_of(x[-400:], y[-400:])) == expected


def test_without_held_out_rows_the_weight_is_kept() -> None:
    weight, x, y = drifted(4000, 0.7)
    assert choose_beta(weight, moments_of(x, y), None) == 0
    held = moments_of(x[: D // 2], y[: D // 2])
    assert held.second_GDD is None
    assert choose_beta(weight, moments_of(x, y), held) == 0


def test_noise_is_not_followed() -> None:
    """Outputs that the inputs say nothing new about: the target only fits noise, and the held-out rows show it."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, T, D, generator=generator).double()
    x = torch.randn(LEAST_ROWS_PER_INPUT * D + 2000, D, generator=generator)
    y = x @ weight[0].float().T + 5 * torch.randn(len(x), T, generator=generator)
    cut = LEAST_ROWS_PER_INPUT * D
    assert choose_beta(weight, moments_of(x[:cut], y[:cut]), moments_of(x[cut:], y[cut:])) == 0


def test_a_fit_is_reduced_rank_regression() -> None:
    weight, x, y = drifted(3000, 0.7)
    factors, bias = fit_site(linear(), weight[0], "svd", (3,), moments_of(x, y), beta=1.0)
    x, y = x.double(), y.double()
    x_c, y_c = x - x.mean(0), y - y.mean(0)
    solved = torch.linalg.lstsq(x_c, y_c).solution.mT
    _, _, V_h = torch.linalg.svd(x_c @ solved.mT, full_matrices=False)
    best = V_h[:3].mT @ V_h[:3] @ solved
    least = (y_c - x_c @ best.mT).square().sum()
    found = (y - x @ factors.dense().mT - bias).square().sum()
    assert least <= found * (1 + 1e-9)
    assert found <= 1.001 * least
    assert torch.linalg.matrix_rank(factors.dense(), rtol=1e-8) == 3


@pytest.mark.parametrize("beta", BETAS)
def test_the_bias_keeps_the_mean_output(beta: float) -> None:
    weight, x, y = drifted(600, 0.7)
    factors, bias = fit_site(linear(), weight[0], "svd", (2,), moments_of(x, y), beta=beta)
    mean = x.double().mean(0) @ factors.dense().mT + bias
    assert torch.allclose(mean, y.double().mean(0), rtol=1e-5, atol=1e-5)


def test_groups_are_fitted_each_on_its_own() -> None:
    parts = [drifted(1000, 0.7, seed) for seed in (1, 2)]
    accumulator = Accumulator()
    accumulator.update(torch.stack([x for _, x, _ in parts]), torch.stack([y for _, _, y in parts]))
    weight = torch.cat([w for w, _, _ in parts])
    target = regression_target(weight, accumulator.moments())
    for group, (w, x, y) in enumerate(parts):
        assert torch.allclose(target[group], regression_target(w, moments_of(x, y))[0], rtol=1e-4, atol=1e-5)


def test_fewer_rows_than_inputs_can_be_fitted() -> None:
    weight, x, y = drifted(5, 0.7)
    moments = moments_of(x, y)
    assert moments.second_GDD is None
    factors, bias = fit_site(linear(), weight[0], "svd", (2,), moments, beta=0.0)
    assert factors.dense().isfinite().all()
    assert torch.allclose(x.double().mean(0) @ factors.dense().mT + bias, y.double().mean(0), atol=1e-5)
