"""Leading eigenvectors by filtered subspace iteration, against full decompositions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from rankwise.linalg import leading as module
from rankwise.linalg.leading import TOLERANCE, leading

N = 480
INDEX = torch.arange(1, N + 1, dtype=torch.float64)
SPECTRA = {
    "inverse": 1 / INDEX,
    "root": INDEX**-0.5,
    "square": INDEX**-2.0,
    "decades": 10 ** (-6 * INDEX / N),
    "nearly flat": 1 + 0.01 * INDEX.flip(0) / N,
    "flat": torch.ones(N, dtype=torch.float64),
    "one outlier": torch.cat([torch.tensor([1e6], dtype=torch.float64), INDEX[:-1] ** -0.5]),
    "two levels": torch.where(INDEX <= 150, 2.0, 1.0).double(),
    "steps": (11 - INDEX.div(48, rounding_mode="floor")).double(),
    "low rank": torch.where(INDEX <= 30, 1 / INDEX, 0.0),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(values: Tensor, seed: int = 0) -> Tensor:
    Q_NN = torch.linalg.qr(normal(len(values), len(values), seed=seed)).Q
    K_NN = Q_NN * values @ Q_NN.mT
    return (K_NN + K_NN.mT) / 2


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("rank", [1, 16, 64, 128])
def test_holds_as_much_as_the_leading_eigenvectors(name: str, rank: int) -> None:
    K_NN, values = turned(SPECTRA[name]), SPECTRA[name].sort(descending=True).values
    found = leading(K_NN, values, rank)
    assert found is not None
    U_NR, held = found
    torch.testing.assert_close(U_NR.mT @ U_NR, torch.eye(rank, dtype=torch.float64), atol=1e-10, rtol=0)
    assert held == pytest.approx(float((U_NR.mT @ K_NN @ U_NR).trace()), rel=1e-10)
    missed, least = float(values.sum()) - held, float(values[rank:].sum())
    assert least - 1e-9 * held <= missed <= (1 + TOLERANCE) * least + 1e-9 * held


@pytest.mark.parametrize("name", ["inverse", "root", "nearly flat"])
def test_single_precision_is_enough_for_moderate_spectra(name: str) -> None:
    K_NN, values = turned(SPECTRA[name]), SPECTRA[name].sort(descending=True).values
    for rank in (8, 100):
        found = leading(K_NN.float(), values, rank)
        assert found is not None
        U_NR, held = found
        own, least = float((U_NR.mT @ K_NN @ U_NR).trace()), float(values[rank:].sum())
        torch.testing.assert_close(U_NR.mT @ U_NR, torch.eye(rank, dtype=torch.float64), atol=1e-10, rtol=0)
        assert float(values.sum()) - own <= (1 + 2 * TOLERANCE) * least
        assert held == pytest.approx(own, abs=TOLERANCE / 2 * least)


def test_eigenvectors_along_the_axes() -> None:
    values = SPECTRA["inverse"]
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    found = leading(torch.diag(values[shuffled]), values, 60)
    assert found is not None
    assert float(values.sum()) - found[1] <= (1 + TOLERANCE) * float(values[60:].sum())


def test_more_rank_is_never_worse() -> None:
    K_NN, values = turned(SPECTRA["root"]), SPECTRA["root"]
    held = [found[1] for rank in range(40, 60) if (found := leading(K_NN, values, rank)) is not None]
    assert len(held) == 20
    assert all(more > less for less, more in itertools.pairwise(held))


def test_the_same_bits_every_time() -> None:
    K_NN = turned(SPECTRA["inverse"]).float()
    first, second = leading(K_NN, SPECTRA["inverse"], 50), leading(K_NN, SPECTRA["inverse"], 50)
    assert first is not None
    assert second is not None
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]


def test_none_where_a_full_decomposition_is_cheaper() -> None:
    assert leading(turned(SPECTRA["inverse"]), SPECTRA["inverse"], 240) is None


def test_none_where_the_tolerance_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    K_NN, values = turned(SPECTRA["root"]), SPECTRA["root"]
    monkeypatch.setattr(module, "GAIN", 1.0001)
    monkeypatch.setattr(module, "REPEATS", 0)
    assert leading(K_NN, values, 60) is None


def test_a_missed_tolerance_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    K_NN, values = turned(SPECTRA["inverse"]), SPECTRA["inverse"]
    monkeypatch.setattr(module, "GAIN", 10.0)
    found = leading(K_NN, values, 60)
    assert found is not None
    assert float(values.sum()) - found[1] <= (1 + TOLERANCE) * float(values[60:].sum())
