"""Streamed moments against moments computed at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rankwise.linalg.later import Later
from rankwise.linalg.metric import Dense, Identity, Sampled
from rankwise.linalg.reduced_rank import truncate
from rankwise.statistics import Moments, accumulator, moments
from rankwise.statistics.accumulator import Accumulator, add_gram, mirror
from rankwise.statistics.moments import identity_metrics, merge
from rankwise.statistics.rows import input_rows, unfold_order
from rankwise.statistics.shrinkage import LARGEST_SHARE, covariance_shrinkage, shrinkage


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streamed(chunks: list[Tensor], targets: list[Tensor] | None = None, taps: int = 1, seed: int = 0) -> Moments:
    accumulator = Accumulator(taps=taps, seed=seed)
    for index, chunk in enumerate(chunks):
        accumulator.update(chunk, None if targets is None else targets[index])
    return accumulator.moments()


def second_of(found: Moments) -> Tensor:
    """E[x x^T] in whichever form it is held."""
    if found.second_GDD is not None:
        return found.second_GDD
    assert found.rows_GND is not None
    rows = found.rows_GND.double()
    return rows.mT @ rows / rows.shape[1]


def at_once(x_GND: Tensor, taps: int) -> tuple[Tensor, Tensor]:
    x_GND = x_GND[:, :, unfold_order(taps, x_GND.shape[2], x_GND.device)]
    return x_GND.mean(1), x_GND.mT @ x_GND / x_GND.shape[1]


def cut(x: Tensor, sizes: list[int]) -> list[Tensor]:
    return [part for part in x.split(sizes, dim=1) if part.shape[1]]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    groups=st.integers(1, 3),
    taps=st.integers(1, 3),
    channels=st.integers(1, 4),
    with_targets=st.booleans(),
    seed=st.integers(0, 999),
)
def test_streaming_in_chunks_is_one_shot(
    sizes: list[int], groups: int, taps: int, channels: int, with_targets: bool, seed: int
) -> None:
    N, D = sum(sizes), taps * channels
    x, y = normal(groups, N, D, seed=seed), normal(groups, N, 2, seed=seed + 1)
    found = streamed(cut(x, sizes), cut(y, sizes) if with_targets else None, taps)
    mean, second = at_once(x, taps)
    assert (found.count, found.dim) == (N, D)
    torch.testing.assert_close(found.mean_GD, mean)
    torch.testing.assert_close(second_of(found), second)
    assert (found.second_GDD is None) == (N <= D)
    assert (found.rows_GND is None) == (N > D)
    if with_targets:
        ordered = x[:, :, unfold_order(taps, D, x.device)]
        torch.testing.assert_close(found.target_mean_GT, y.mean(1))
        torch.testing.assert_close(found.cross_GTD, y.mT @ ordered / N)
    else:
        assert found.target_mean_GT is None
        assert found.cross_GTD is None


@settings(max_examples=40, deadline=None)
@given(
    first=st.integers(1, 12),
    second=st.integers(1, 12),
    third=st.integers(1, 12),
    with_targets=st.booleans(),
    seed=st.integers(0, 999),
)
def test_merged_parts_are_the_whole(first: int, second: int, third: int, with_targets: bool, seed: int) -> None:
    """Parts above and below the input dimension of 6 are held in different forms."""
    x, y = normal(2, first + second + third, 6, seed=seed), normal(2, first + second + third, 3, seed=seed + 1)
    sizes = [first, second, third]
    parts = [
        streamed([part], [target] if with_targets else None, taps=3)
        for part, target in zip(cut(x, sizes), cut(y, sizes), strict=True)
    ]
    for merged in (merge(parts), merge([merge(parts[:2]), parts[2]])):
        whole = streamed([x], [y] if with_targets else None, taps=3)
        assert merged.count == whole.count
        torch.testing.assert_close(merged.mean_GD, whole.mean_GD)
        torch.testing.assert_close(second_of(merged), second_of(whole))
        torch.testing.assert_close(merged.cross_GTD, whole.cross_GTD)
        torch.testing.assert_close(merged.target_mean_GT, whole.target_mean_GT)


def test_parts_of_different_sizes_are_not_merged() -> None:
    with pytest.raises(ValueError, match=r"different sizes.*\(1, 3\).*\(1, 4\)"):
        merge([streamed([normal(1, 9, 3)]), streamed([normal(1, 9, 4)])])


def test_moments_may_be_asked_for_again_and_then_more_rows_added() -> None:
    x, y = normal(1, 30, 4), normal(1, 30, 2, seed=1)
    accumulator = Accumulator()
    for start in (0, 3, 10):
        accumulator.update(x[:, start : start + 3], y[:, start : start + 3])
        accumulator.moments()
    seen = torch.cat([x[:, s : s + 3] for s in (0, 3, 10)], dim=1)
    targets = torch.cat([y[:, s : s + 3] for s in (0, 3, 10)], dim=1)
    found = accumulator.moments()
    assert found.count == 9
    torch.testing.assert_close(second_of(found), at_once(seen, 1)[1])
    torch.testing.assert_close(found.cross_GTD, targets.mT @ seen / 9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("before", [0, 20])
def test_rows_that_are_not_finite_are_refused(value: float, before: int) -> None:
    accumulator = Accumulator()
    if before:
        accumulator.update(normal(1, before, 3))
    rows = normal(1, 5, 3)
    rows[0, 2, 1] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        accumulator.update(rows)


def test_no_rows_no_moments() -> None:
    with pytest.raises(ValueError, match="no row was seen"):
        Accumulator().moments()


@pytest.mark.parametrize("dim", [1, 2, 255, 256, 257, 515])
def test_products_are_those_with_the_transpose(dim: int) -> None:
    total = torch.zeros(2, dim, dim, dtype=torch.float64)
    parts = normal(2, 9, dim).float(), normal(2, 5, dim, seed=1).float()
    for x in parts:
        add_gram(total, x)
    mirror(total)
    torch.testing.assert_close(total, sum(x.double().mT @ x.double() for x in parts), rtol=1e-5, atol=1e-5)


def test_single_precision_rows_add_up_in_double_precision() -> None:
    """A mean far from zero, and very many batches: sums in single precision would drift."""
    accumulator = Accumulator()
    chunk = (normal(1, 50, 4) + 100).float()
    for _ in range(2000):
        accumulator.update(chunk)
    found = accumulator.moments()
    mean, second = at_once(chunk.double(), 1)
    torch.testing.assert_close(found.mean_GD, mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(second_of(found), second, rtol=1e-6, atol=0)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (moments, accumulator):
        monkeypatch.setattr(module, "LARGEST_DENSE", 8)
        monkeypatch.setattr(module, "SAMPLED_ROWS", 16)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("rows", [5, 16, 33, 200])
def test_above_the_largest_dense_size_a_sample_of_rows_is_kept(rows: int) -> None:
    x = normal(1, rows, 10)
    x[0, :, 0] = torch.arange(rows)
    found = streamed(list(x.split(7, dim=1)))
    assert found.count == rows
    assert found.second_GDD is None
    assert found.rows_GND is not None
    assert found.rows_GND.shape[1] <= 32
    assert found.rows_GND.shape[1] >= min(rows, 16)
    torch.testing.assert_close(found.mean_GD, x.mean(1))  # of all rows
    kept = found.rows_GND[0, :, 0].round().long()
    torch.testing.assert_close(found.rows_GND[0], x[0, kept])
    assert len(set(kept.tolist())) == len(kept)
    again = streamed(list(x.split(7, dim=1))).rows_GND
    assert again is not None
    assert torch.equal(again, found.rows_GND)
    (metric,) = found.metrics()
    assert isinstance(metric, Later)
    assert isinstance(metric.made, Sampled)


@pytest.mark.usefixtures("small_limits")
def test_the_kept_sample_is_uniform_over_the_stream() -> None:
    hits, draws, rows = torch.zeros(100), 600, 100
    x = torch.zeros(1, rows, 9, dtype=torch.float64)
    x[0, :, 0] = torch.arange(rows)
    for seed in range(draws):
        found = streamed(list(x.split(11, dim=1)), seed=seed)
        assert found.rows_GND is not None
        assert found.rows_GND.shape[1] == 16
        hits[found.rows_GND[0, :, 0].round().long()] += 1
    sigma = math.sqrt(draws * 0.16 * 0.84)
    assert float((hits - 0.16 * draws).abs().max()) < 5 * sigma
    assert abs(float(hits[:50].sum()) - 0.08 * draws * 100) < 5 * sigma * math.sqrt(50)


@pytest.mark.usefixtures("small_limits")
def test_the_cross_moment_of_a_sample_estimates_that_of_all_rows() -> None:
    x = normal(1, 400, 10) + 1
    y = x[:, :, :2] * 3
    draws = [streamed(list(x.split(20, dim=1)), list(y.split(20, dim=1)), seed=seed) for seed in range(100)]
    crosses = [found.cross_GTD for found in draws if found.cross_GTD is not None]
    assert all(found.rows_GND is not None and found.rows_GND.shape[1] == 16 for found in draws)
    torch.testing.assert_close(torch.stack(crosses).mean(0), y.mT @ x / 400, atol=1.0, rtol=0)


# ---- what the moments are for

GRID = [step / 100 for step in range(100)]


def skewed(N: int, D: int, seed: int = 0) -> Tensor:
    mix = normal(D, D, seed=seed + 1) * torch.logspace(0, -1, D, dtype=torch.float64)[:, None]
    return (normal(1, N, D, seed=seed) @ mix).relu() + 0.5


@pytest.mark.parametrize("N", [200, 5])
def test_metrics_are_centred_and_damped(N: int) -> None:
    x = skewed(N, 7)
    found = streamed([x])
    centred = x[0] - x[0].mean(0)
    covariance = centred.mT @ centred / N
    (plain,) = found.metrics(damping=0)
    assert isinstance(plain, Later)
    assert isinstance(plain.made, Dense if N > 7 else Sampled)
    torch.testing.assert_close(plain.dense(), covariance)
    torch.testing.assert_close(found.uncentred().metrics(damping=0)[0].dense(), x[0].mT @ x[0] / N)
    if N > 7:
        damped = found.metrics(damping=0.1)[0].dense()
        eye = torch.eye(7, dtype=torch.float64)
        torch.testing.assert_close(damped, covariance + 0.1 * covariance.trace() / 7 * eye)


@pytest.mark.parametrize("N", [400, 5])
def test_metrics_are_shrunk_towards_the_weight_metric(N: int) -> None:
    """`(1 - s) Sigma + s trace(Sigma) / D I` up to scale, whatever form the metric has; what few rows ask for first."""
    found, eye = streamed([skewed(N, 7)]), torch.eye(7, dtype=torch.float64)
    for damping in (0.0, None):
        (plain,) = found.metrics(damping=damping)
        sigma = plain.dense()
        for share in (0.01, 0.5, 0.999):
            shrunk = found.metrics(share, damping=damping)[0].dense() * (1 - share)
            torch.testing.assert_close(shrunk, (1 - share) * sigma + share * eye * sigma.trace() / 7)
    torch.testing.assert_close(found.metrics(1)[0].dense(), eye)


@pytest.mark.parametrize("N", [20, 60])
def test_shrinkage_of_few_rows_and_the_share_add_up_to_one_share(N: int) -> None:
    found = streamed([spiked(N, 30, 0)])
    S = found.metrics(damping=0)[0].dense()
    mean = S.trace() / 30
    rows_ask = shrinkage(float(S.trace()), float(S.square().sum()), N, 30)
    assert rows_ask > 0.02
    share = 1 - (1 - rows_ask) * (1 - 0.2)
    wanted = (1 - share) * S + share * mean * torch.eye(30, dtype=torch.float64)
    found_DD = found.metrics(0.2)[0].dense()
    torch.testing.assert_close(found_DD / found_DD.trace(), wanted / wanted.trace())


def test_of_many_rows_covariances_are_shrunk_and_the_share_comes_on_top() -> None:
    N = 300
    found = streamed([spiked(N, 30, 0)])
    S = found.metrics(damping=0)[0].dense()
    rows_ask = covariance_shrinkage(S.diagonal(), float(S.square().sum()), N)
    assert rows_ask > 0.5  # the inputs are independent
    best = (1 - rows_ask) * S + rows_ask * torch.diag(S.diagonal())
    wanted = (1 - 0.2) * best + 0.2 * S.trace() / 30 * torch.eye(30, dtype=torch.float64)
    found_DD = found.metrics(0.2)[0].dense()
    torch.testing.assert_close(found_DD / found_DD.trace(), wanted / wanted.trace(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("wrong", [-0.01, 1.5, float("nan"), "0.1", True, None])
def test_a_share_of_the_weight_metric_lies_between_0_and_1(wrong: object) -> None:
    with pytest.raises(ValueError, match="shrink must be a number from 0"):
        streamed([skewed(20, 4)]).metrics(wrong)


def test_moments_without_rows_make_the_same_metric() -> None:
    found = streamed([torch.cat([skewed(5, 9), skewed(5, 9, seed=3)])])
    without = found.without_rows()
    assert found.rows_GND is not None
    assert without.rows_GND is None
    for ours, theirs in zip(without.metrics(), found.metrics(), strict=True):
        torch.testing.assert_close(ours.dense(), theirs.dense())
    full = streamed([skewed(50, 9)])
    assert full.without_rows() is full


def spiked(N: int, D: int, seed: int) -> Tensor:
    """Rows of unit variance but for a few strong directions."""
    return normal(1, N, D, seed=seed) * torch.logspace(1, -1, D, dtype=torch.float64)


@pytest.mark.parametrize("N", [3, 10, 40, 400, 40_000])
def test_the_shrinkage_is_close_to_the_best_one(N: int) -> None:
    """Against the share that a grid finds for the true covariance, which the estimate never sees."""
    D = 40
    true = torch.diag(torch.logspace(2, -2, D, dtype=torch.float64))
    eye = torch.eye(D, dtype=torch.float64)
    found, best = [], []
    for seed in range(10):
        (plain,) = streamed([spiked(N, D, seed)]).metrics(damping=0)
        S, mean = plain.dense(), float(plain.dense().trace()) / D
        share = shrinkage(D * mean, float(S.square().sum()), N, D)
        missed = [float(((1 - s) * S + s * mean * eye - true).square().sum()) for s in (share, *GRID)]
        found.append(missed[0])
        best.append(min(missed[1:]))
    assert sum(found) <= 1.2 * sum(best)


@pytest.mark.parametrize("N", [3, 10, 40, 400, 40_000])
def test_the_shrinkage_of_covariances_is_close_to_the_best_one(N: int) -> None:
    """Of inputs that go together in pairs, against the share that a grid finds for the true covariance."""
    D = 40
    true = torch.diag(torch.logspace(2, -2, D, dtype=torch.float64))
    mixed = torch.linalg.qr(normal(D, D, seed=7)).Q
    true = torch.lerp(true, mixed @ true @ mixed.mT, 0.5)
    root = torch.linalg.cholesky(true)
    found, best = [], []
    for seed in range(10):
        S = streamed([normal(1, N, D, seed=seed) @ root.mT]).metrics(damping=0)[0].dense()
        share = covariance_shrinkage(S.diagonal(), float(S.square().sum()), N)
        missed = [float((torch.lerp(S, S.diagonal().diag(), s) - true).square().sum()) for s in (share, *GRID)]
        found.append(missed[0])
        best.append(min(missed[1:]))
    assert sum(found) <= 1.2 * sum(best)


def test_independent_inputs_have_no_covariance() -> None:
    S = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert covariance_shrinkage(S.diagonal(), float(S.square().sum()), 10) == 0.0  # nothing to shrink
    white = streamed([normal(1, 500, 40)]).metrics()[0].dense()
    assert (white - torch.diag(white.diagonal())).abs().max() < 0.02


def test_the_shrinkage_of_no_and_of_all_information() -> None:
    assert shrinkage(trace=10.0, squares=20.0, rows=10**9, dim=10) < 1e-6
    assert shrinkage(trace=10.0, squares=10.0, rows=50, dim=10) == 0.0  # the identity already: no share is better
    assert shrinkage(trace=10.0, squares=90.0, rows=1, dim=10) == LARGEST_SHARE
    assert shrinkage(trace=0.0, squares=0.0, rows=5, dim=10) == 0.0


@pytest.mark.parametrize("rank", [10, 20, 28, 35])
def test_shrinkage_foretells_and_lowers_the_error_on_new_rows(rank: int) -> None:
    """With four times fewer rows than inputs, what was not seen must not look free."""
    D, N = 120, 30
    x, new, W = spiked(N, D, 0), spiked(5000, D, 1)[0], normal(40, D, seed=2)
    found = streamed([x])
    total = float((new @ W.mT).square().sum())

    def outcome(damping: float | None) -> tuple[float, float]:
        (metric,) = found.metrics(damping=damping)
        U_TR, V_RD, error = truncate(W, metric, rank)
        missed = new @ (W - U_TR @ V_RD).mT
        return error / metric.energy(W), float(missed.square().sum()) / total

    (foretold, real), (plain_foretold, plain_real) = outcome(None), outcome(1e-6)
    assert real < plain_real
    assert foretold == pytest.approx(real, rel=0.15)
    assert plain_foretold < 0.4 * plain_real


def test_each_group_has_its_own_metric() -> None:
    x = torch.cat([skewed(50, 4), skewed(50, 4, seed=9) * 3])
    metrics = streamed([x]).metrics(damping=0)
    for group in range(2):
        alone = streamed([x[group : group + 1]]).metrics(damping=0)[0]
        torch.testing.assert_close(metrics[group].dense(), alone.dense())


def test_identity_metrics() -> None:
    metrics = identity_metrics(3, 5)
    assert len(metrics) == 3
    assert all(isinstance(metric, Identity) and metric.dim == 5 for metric in metrics)


@settings(max_examples=20, deadline=None)
@given(groups=st.integers(1, 3), has_bias=st.booleans(), N=st.integers(2, 40), seed=st.integers(0, 999))
def test_the_bias_keeps_the_mean_output(groups: int, has_bias: bool, N: int, seed: int) -> None:
    x = torch.cat([skewed(N, 4, seed=seed + g) for g in range(groups)])
    W, V = normal(groups, 3, 4, seed=seed), normal(groups, 3, 4, seed=seed + 1)
    bias = normal(groups * 3, seed=seed + 2) if has_bias else None
    found = streamed([x]).bias(W.reshape(-1, 4), V.reshape(-1, 4), bias)
    assert found.shape == (groups * 3,)
    outputs = x @ W.mT + (0 if bias is None else bias.view(groups, 1, 3))
    torch.testing.assert_close((x @ V.mT + found.view(groups, 1, 3)).mean(1), outputs.mean(1))


def test_bias_identity() -> None:
    """mean |(W - V) x - (W - V) mu|^2 = tr[(W - V) C (W - V)^T]."""
    x, W, V = skewed(60, 6), normal(4, 6, seed=3), normal(4, 6, seed=4)
    found = streamed([x])
    missed = (x[0] - x[0].mean(0)) @ (W - V).mT
    assert found.metrics(damping=0)[0].energy(W - V) == pytest.approx(float(missed.square().sum(1).mean()))


@settings(max_examples=20, deadline=None)
@given(rank=st.integers(1, 5), seed=st.integers(0, 999))
def test_centred_with_bias_is_the_best_of_four(rank: int, seed: int) -> None:
    x, W = skewed(80, 8, seed), normal(6, 8, seed=seed + 5)
    found = streamed([x])

    def true_error(centred: bool, corrected: bool) -> float:
        U_TR, V_RD, _ = truncate(W, (found if centred else found.uncentred()).metrics(damping=0)[0], rank)
        V = U_TR @ V_RD
        bias = found.bias(W, V, None) if corrected else torch.zeros(6, dtype=torch.float64)
        return float((x[0] @ (W - V).mT - bias).square().sum(1).mean())

    best = true_error(centred=True, corrected=True)
    tiny = 1e-12 * float((x[0] @ W.mT).square().sum(1).mean())
    uncentred = true_error(centred=False, corrected=False)
    assert best <= true_error(centred=False, corrected=True) + tiny
    assert true_error(centred=False, corrected=True) <= uncentred + tiny
    assert uncentred <= true_error(centred=True, corrected=False) + tiny


@pytest.mark.parametrize(
    "options",
    [{"stride": (2, 1), "padding": (1, 2)}, {"padding": "same", "groups": 2}, {"dilation": 2, "padding_mode": "zeros"}],
)
def test_the_energy_is_the_mean_squared_change_of_a_convolution(options: dict[str, Any]) -> None:
    conv, other = nn.Conv2d(4, 6, 3, **options).double(), nn.Conv2d(4, 6, 3, **options).double()
    x = normal(3, 4, 8, 7) + 0.5
    found = streamed([input_rows(conv, x, None)], taps=9)
    change = (conv.weight - other.weight).detach().reshape(conv.groups, -1, found.dim)
    metrics = found.uncentred().metrics(damping=0)
    energy = sum(metric.energy(part) for metric, part in zip(metrics, change, strict=True))
    other.bias = conv.bias
    missed = (conv(x) - other(x)).detach()
    assert energy * found.count == pytest.approx(float(missed.square().sum()))
    corrected = found.bias(conv.weight.detach(), other.weight.detach(), conv.bias)
    with torch.no_grad():
        outputs = other(x) - conv.bias.view(1, -1, 1, 1) + corrected.view(1, -1, 1, 1)
    torch.testing.assert_close(outputs.mean((0, 2, 3)), conv(x).detach().mean((0, 2, 3)))


@pytest.mark.usefixtures("small_limits")
def test_merged_samples_weigh_each_part_by_its_rows() -> None:
    low, high = torch.zeros(1, 900, 10, dtype=torch.float64), torch.ones(1, 100, 10, dtype=torch.float64)
    merged = merge([streamed(list(part.split(50, dim=1))) for part in (low, high)])
    assert merged.count == 1000
    torch.testing.assert_close(merged.mean_GD, torch.full((1, 10), 0.1, dtype=torch.float64))
    assert merged.rows_GND is not None
    assert float(merged.rows_GND.mean()) < 0.35


def test_without_cross_moments_the_means_of_targets_stay() -> None:
    x, y = normal(1, 60, 5), normal(1, 60, 3, seed=1)
    whole, bare = Accumulator(), Accumulator(crosses=False)
    for rows, targets in zip(x.split(20, dim=1), y.split(20, dim=1), strict=True):
        whole.update(rows, targets)
        bare.update(rows, targets)
    found = bare.moments()
    assert found.cross_GTD is None
    assert torch.equal(found.target_mean_GT, whole.moments().target_mean_GT)
    assert torch.equal(found.second_GDD, whole.moments().second_GDD)
    merged = merge([found, found])
    assert merged.cross_GTD is None
    torch.testing.assert_close(merged.target_mean_GT, found.target_mean_GT)


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e6])
def test_the_moment_of_many_large_rows(size: float) -> None:
    x = (normal(2, 300, 2000) + 3).float() * size
    found = Moments(count=300, mean_GD=x.double().mean(1), rows_GND=x).without_rows()
    expected = x.double().mT @ x.double() / 300
    assert found.second_GDD is not None
    torch.testing.assert_close(found.second_GDD, expected, atol=1e-6 * size**2, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_magnitudes_and_parts_of_the_rows(scale: float) -> None:
    """Forty calls in 32 parts: the first eight parts have two calls each."""
    chunks = [scale * (normal(1, 3 + index % 3, 6, seed=index) + 1) for index in range(40)]
    own = Accumulator(taps=2, parts=True)
    for chunk in chunks:
        own.update(chunk)
    found, order = own.moments(), unfold_order(2, 6, torch.device("cpu"))
    rows = torch.cat(chunks, 1)[0]
    assert found.magnitude_GD is not None
    torch.testing.assert_close(found.magnitude_GD[0], rows.abs().mean(0)[order], rtol=1e-9, atol=0)
    groups = [torch.cat(chunks[part::32], 1)[0] for part in range(32)]
    assert found.parts_K is not None
    assert found.parts_KGD is not None
    assert found.parts_K.tolist() == [len(each) for each in groups]
    torch.testing.assert_close(found.parts_KGD[:, 0], torch.stack([each.mean(0)[order] for each in groups]))
    pooled = sum(each.mT.cov() * (len(each) - 1) for each in groups) / (len(rows) - 32)
    (metric,) = found.two_sided("pooled").inputs
    torch.testing.assert_close(metric.dense(), pooled[order][:, order], rtol=1e-5, atol=1e-5 * scale**2)
    (diagonal,) = found.two_sided("magnitude").inputs
    torch.testing.assert_close(diagonal.dense().diagonal(), found.magnitude_GD[0], rtol=1e-5, atol=0)
    both = merge([found, found])
    assert both.parts_K is not None
    assert len(both.parts_K) == 64


def test_metrics_of_the_literature_tell_what_is_missing() -> None:
    plain = streamed([normal(1, 9, 4)])
    for kind, words in (("magnitude", "mean magnitudes"), ("pooled", "means of parts"), ("rows", "gradients of the w")):
        with pytest.raises(ValueError, match=f"the statistics hold no {words}.*the metric '{kind}' needs"):
            plain.two_sided(kind)
