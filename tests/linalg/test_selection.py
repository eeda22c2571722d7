"""Which neurons are selected, and coordinates in which the metric is plain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rankwise.linalg.metric import Dense, Identity, Metric
from rankwise.linalg.selection import fit_selected
from rankwise.linalg.sorting import Sorted, descending, shares
from rankwise.linalg.sparse_low_rank import Level


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def metric_of(dim: int) -> Metric:
    root = made(dim, dim, seed=9)
    return Dense(root @ root.mT / dim)


def test_dead_neurons_are_selected_exactly_by_count() -> None:
    """Half of the inputs are zero, fewer are to be left out: a threshold would leave out none."""
    scores = torch.zeros(20)
    scores[10:] = torch.rand(10, generator=torch.Generator().manual_seed(0)) + 0.1
    order = descending(scores)
    left_out = math.floor(0.3 * 20)
    assert sorted(order[:10].tolist()) == list(range(10, 20))
    assert order[10:].tolist() == list(range(10))
    assert len(set(order[:-left_out].tolist())) == 14


@pytest.mark.parametrize("taps", [1, 3])
def test_shares_are_diagonal_blocks(taps: int) -> None:
    M, metric = made(5, 12), metric_of(12)
    rows, channels = shares(M, metric, taps)
    torch.testing.assert_close(rows, (M @ metric.dense() @ M.mT).diagonal())
    for channel in range(12 // taps):
        own = slice(channel * taps, (channel + 1) * taps)
        block = M[:, own] @ metric.dense()[own, own] @ M[:, own].mT
        torch.testing.assert_close(channels[channel], block.trace())
    torch.testing.assert_close(shares(M, Identity(12), taps)[1], M.square().unflatten(1, (-1, taps)).sum((0, 2)))


@pytest.mark.parametrize("taps", [1, 2])
def test_sorted_coordinates_keep_energies_and_first_columns(taps: int) -> None:
    W, metric = made(6, 8), metric_of(8)
    rows, channels = torch.randperm(6, generator=torch.Generator().manual_seed(1)), torch.arange(8 // taps).flip(0)
    weight = Sorted(W, metric, rows, channels)
    assert float(weight.Z_TD.square().sum()) == pytest.approx(metric.energy(W))
    torch.testing.assert_close(weight.unsorted(weight.plain(weight.Z_TD)), W)
    first = made(6, 2 * taps, seed=3)
    back = torch.zeros(6, 8, dtype=torch.float64)
    back[:, : 2 * taps] = weight.plain(first)
    assert metric.energy(weight.unsorted(back)) == pytest.approx(float(first.square().sum()))


@pytest.mark.parametrize("metric", [Identity(12), metric_of(12)], ids=["weight", "input"])
def test_the_error_is_that_in_the_metric_and_refitting_lowers_it(metric: Metric) -> None:
    W, levels = made(10, 12), [Level(2, 10, 12), Level(3, 5, 6)]
    fitted = fit_selected(W, metric, levels)
    assert fitted.error == pytest.approx(metric.energy(W - fitted.weight_TD))
    assert fitted.error < fit_selected(W, metric, levels, refit=False).error
    scores = shares(W, metric, 1)
    assert fitted.error <= fit_selected(W, metric, levels, scores).error + 1e-12


def test_given_scores_are_what_selects() -> None:
    W, levels = made(6, 7), [Level(0, 6, 7), Level(2, 2, 3)]
    rows, columns = torch.tensor([0.0, 5, 0, 4, 0, 0]), torch.tensor([1.0, 0, 0, 2, 0, 0, 3])
    found = fit_selected(W, Identity(7), levels, (rows, columns)).weight_TD
    assert found.abs().sum(1).nonzero().flatten().tolist() == [1, 3]
    assert found.abs().sum(0).nonzero().flatten().tolist() == [0, 3, 6]


def test_a_zero_row_and_a_dead_input_come_last() -> None:
    W = made(5, 6)
    W[2] = 0
    sigma = torch.eye(6, dtype=torch.float64)
    sigma[4, 4] = 0
    fitted = fit_selected(W, Dense(sigma), [Level(0, 5, 6), Level(4, 4, 5)])
    assert fitted.rows_T[-1] == 2
    assert fitted.channels_C[-1] == 4
    assert fitted.error < 1e-9
