"""Reduced-rank factors of large weights, against exact decompositions in float64."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor

from rankwise.linalg import large as module
from rankwise.linalg.diagonal import Diagonal
from rankwise.linalg.kept import Kept
from rankwise.linalg.large import LARGE, Large
from rankwise.linalg.leading import TOLERANCE
from rankwise.linalg.metric import Dense, Identity, Metric, Sampled
from rankwise.linalg.reduced_rank import energies, energy, truncate

SHAPE = (1024, 1056)
INDEX = torch.arange(1, SHAPE[1] + 1, dtype=torch.float64)
# Of the inputs. Condition numbers from 1 to 1e8, and one input that is far larger than all others together.
MOMENTS = {
    "equal": torch.ones_like(INDEX),
    "inverse": 1 / INDEX,
    "square": INDEX**-2.0,
    "eight decades": 10 ** (-8 * INDEX / SHAPE[1]),
    "one outlier": torch.cat([torch.tensor([1e8], dtype=torch.float64), INDEX[:-1] ** -0.5]),
    "few inputs": torch.where(INDEX <= 40, 1.0, 0.0),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight(T: int, D: int) -> Tensor:
    return (normal(T, D) / D**0.5).double()  # numbers that float32 holds, as a layer's


@cache
def metric_of(name: str) -> Dense:
    Q_DD = torch.linalg.qr(normal(SHAPE[1], SHAPE[1], seed=1).double()).Q
    return Dense(Q_DD * MOMENTS[name] @ Q_DD.mT)


def exact(W_TD: Tensor, metric: Metric) -> Tensor:
    whitened = torch.linalg.eigvalsh(W_TD @ metric.dense() @ W_TD.mT) if len(W_TD) <= W_TD.shape[1] else None
    if whitened is None:
        L_DD = torch.linalg.cholesky(metric.dense())
        whitened = torch.linalg.eigvalsh(L_DD.mT @ (W_TD.mT @ W_TD) @ L_DD)
    return whitened.flip(0).clamp_min(0)


def direct(W_TD: Tensor, V_TD: Tensor, metric: Metric) -> float:
    missed = W_TD - V_TD
    return float((missed @ metric.dense() * missed).sum())


def tails(values: Tensor) -> Tensor:
    return values.flip(0).cumsum(0).flip(0)


@cache
def least(name: str) -> Tensor:
    """The least errors at all ranks."""
    return torch.cat([tails(exact(weight(*SHAPE), metric_of(name))), torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize("name", MOMENTS)
def test_errors_of_all_ranks_that_save_something(name: str) -> None:
    W_TD, metric = weight(*SHAPE), metric_of(name)
    useful = SHAPE[0] * SHAPE[1] // sum(SHAPE)
    found, best = tails(energies(W_TD, metric)), least(name)
    floor = 1e-13 * float(best[0])  # rounding in float64
    torch.testing.assert_close(found[: useful + 1], best[: useful + 1], rtol=TOLERANCE, atol=floor)
    assert energy(W_TD, metric) == pytest.approx(float(best[0]), rel=1e-6)


@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize("rank", [1, 24, 256, 500, 1024])
def test_factors_are_the_best_to_the_tolerance(name: str, rank: int) -> None:
    W_TD, metric = weight(*SHAPE), metric_of(name)
    U_TR, V_RD, error = truncate(W_TD, metric, rank)
    best = float(least(name)[rank])
    floor = 1e-12 * metric.energy(W_TD)
    assert direct(W_TD, U_TR @ V_RD, metric) <= (1 + 2 * TOLERANCE) * best + floor
    assert error == pytest.approx(direct(W_TD, U_TR @ V_RD, metric), rel=TOLERANCE, abs=floor)
    torch.testing.assert_close(U_TR.mT @ U_TR, torch.eye(rank, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("T, D", [(2100, 512), (512, 2100)])
@pytest.mark.parametrize("form", ["dense", "sampled", "diagonal", "identity"])
def test_every_shape_and_form_of_metric(T: int, D: int, form: str) -> None:
    W_TD, rows_ND = weight(T, D), normal(300, D, seed=2).double() / 300**0.5
    rows_ND *= torch.linspace(0.1, 2, D)
    metric: Metric = {
        "dense": Dense(rows_ND.mT @ rows_ND, 0.01),
        "sampled": Sampled(rows_ND, 0.01),
        "diagonal": Diagonal(rows_ND.square().sum(0)),
        "identity": Identity(D),
    }[form]
    values = exact(W_TD, metric)
    torch.testing.assert_close(energies(W_TD, metric)[:400].sum(), values[:400].sum(), rtol=1e-6, atol=0)
    for rank in (30, 200):
        U_TR, V_RD, error = truncate(W_TD, metric, rank)
        best = float(values[rank:].sum())
        assert direct(W_TD, U_TR @ V_RD, metric) <= (1 + 2 * TOLERANCE) * best
        assert error == pytest.approx(direct(W_TD, U_TR @ V_RD, metric), rel=TOLERANCE)


@pytest.mark.parametrize("T, D", [(1200, 1030), (1030, 1200)])
def test_a_weight_of_low_rank_is_recovered(T: int, D: int) -> None:
    W_TD = (normal(T, 20) @ normal(20, D, seed=1)).double()
    metric = Diagonal(torch.linspace(0.1, 1, D))
    for rank in (20, 60):
        U_TR, V_RD, error = truncate(W_TD, metric, rank)
        torch.testing.assert_close(U_TR @ V_RD, W_TD, atol=1e-5, rtol=1e-5)
        assert error <= 1e-9 * metric.energy(W_TD)
        torch.testing.assert_close(U_TR.mT @ U_TR, torch.eye(rank, dtype=torch.float64), atol=1e-9, rtol=0)


def test_more_rank_is_never_worse() -> None:
    W_TD, metric = weight(*SHAPE), metric_of("inverse")
    errors = [truncate(W_TD, metric, rank)[2] for rank in (100, 101, 102, 103, 400, 401, 520, 530)]
    assert all(more < less for less, more in itertools.pairwise(errors))


@pytest.mark.parametrize("weights, inputs", [(1e-12, 1.0), (1e12, 1.0), (1.0, 1e-24), (1.0, 1e24), (1e-30, 1e30)])
def test_scales_do_not_matter(weights: float, inputs: float) -> None:
    W_TD, variance_D = weight(*SHAPE), MOMENTS["inverse"]
    _, _, plain = truncate(W_TD, Diagonal(variance_D), 100)
    _, _, scaled = truncate(W_TD * weights, Diagonal(variance_D * inputs), 100)
    assert scaled / weights**2 / inputs == pytest.approx(plain, rel=TOLERANCE)


def test_zeros() -> None:
    U_TR, V_RD, error = truncate(torch.zeros(SHAPE, dtype=torch.float64), Identity(SHAPE[1]), 8)
    assert error == 0
    assert not (U_TR @ V_RD).any()


def test_the_same_bits_every_time() -> None:
    W_TD, metric = weight(*SHAPE), metric_of("inverse")
    first, second = truncate(W_TD, metric, 100), truncate(W_TD, metric, 100)
    assert all(torch.equal(one, other) for one, other in zip(first[:2], second[:2], strict=True))
    assert first[2] == second[2]


def test_single_precision_is_left_where_it_is_not_enough() -> None:
    W_TD = weight(*SHAPE)
    assert Large.of(W_TD, metric_of("inverse")).K_KK.dtype == torch.float32
    assert Large.of(W_TD, metric_of("one outlier")).K_KK.dtype == torch.float64


def test_a_fit_takes_what_the_curve_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    W_TD, metric, kept = weight(*SHAPE), Diagonal(MOMENTS["inverse"]), Kept(2**30)
    metric.place = kept.place("a site")
    values_K = energies(W_TD, metric)
    assert kept.size > 4 * len(values_K) ** 2
    alone = Diagonal(MOMENTS["inverse"])
    expected = truncate(W_TD, alone, 100)
    monkeypatch.setattr(module, "_spectrum", None)  # not called again
    again = Diagonal(MOMENTS["inverse"])
    again.place = kept.place("a site")
    for found in (truncate(W_TD, metric, 100), truncate(W_TD, again, 100)):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_another_weight_is_decomposed_anew() -> None:
    W_TD, metric = weight(*SHAPE), Diagonal(MOMENTS["inverse"])
    metric.place = Kept(2**30).place("a site")
    before = energy(W_TD, metric)
    W_TD[5, 7] += 1e-3
    assert energy(W_TD, metric) != before
    assert energy(2 * W_TD, metric) == pytest.approx(4 * before, rel=1e-3)


def test_nothing_is_kept_without_room() -> None:
    W_TD, metric, kept = weight(*SHAPE), Diagonal(MOMENTS["inverse"]), Kept(2**20)
    metric.place = kept.place("a site")
    assert energies(W_TD, metric).numel() == SHAPE[0]
    assert kept.size == 0
    assert W_TD.numel() >= LARGE
