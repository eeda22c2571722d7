"""Times between measured ranks: exact where measured, monotone, right for a chain that is made of its layers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.latency.estimate import Estimate, nonnegative, spread
from rankwise.timing.clock import Latency


def at(seconds: float) -> Latency:
    return Latency(median=seconds, low=0.9 * seconds, high=1.1 * seconds)


def exactly(seconds: float) -> Latency:
    return Latency(median=seconds, low=seconds, high=seconds)


def estimate(times: dict[tuple[int, ...], float], macs: dict[tuple[int, ...], int] | None = None) -> Estimate:
    return Estimate({ranks: at(time) for ranks, time in times.items()}, macs or {})


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(1, 300), st.floats(1e-5, 1e-2), min_size=1, max_size=8))
def test_one_rank_is_exact_where_measured_and_between_its_neighbours(times: dict[int, float]) -> None:
    found = Estimate({(rank,): exactly(time) for rank, time in times.items()}, {})
    ladder = sorted(times)
    for rank in ladder:
        assert found((rank,)) == exactly(times[rank])
    for below, above in pairwise(ladder):
        least, most = sorted((times[below], times[above]))
        for rank in range(below, above):
            assert least * (1 - 1e-9) <= found((rank,)).median <= most * (1 + 1e-9)


def test_time_that_seems_to_fall_within_noise_is_pooled() -> None:
    found = estimate({(8,): 1.0, (16,): 2.1, (24,): 2.0, (32,): 1.2})
    assert [found((rank,)).median for rank in (8, 16, 24, 32)] == pytest.approx([1.0, 2.05, 2.05, 1.2])


def test_ranks_between_blocks_take_as_long_as_the_next_block() -> None:
    measured = {(8,): at(0.8), (16,): at(1.0), (32,): at(2.0), (64,): at(4.0)}
    found = Estimate(measured, {}, block=16)
    assert [found((rank,)).median for rank in (12, 20, 31, 40, 48)] == pytest.approx([0.9, 2.0, 2.0, 3.0, 3.0])


def test_one_rank_beyond_what_was_measured() -> None:
    found = estimate({(16,): 1.0, (32,): 3.0})
    assert found((8,)) == at(1.0)  # a smaller rank need not be faster
    assert found((64,)).median == pytest.approx(6.0)


def test_a_line_goes_through_the_interval_too() -> None:
    assert estimate({(10,): 1.0, (20,): 2.0})((15,)) == Latency(
        median=1.5, low=pytest.approx(1.35), high=pytest.approx(1.65)
    )


def test_two_ranks_of_a_chain_of_three_layers() -> None:
    """Each layer takes time in proportion to its channels, so that nine measured options tell all."""

    def time(R: int, S: int) -> float:
        return 2e-5 + 3e-7 * S + 1e-8 * R * S + 5e-7 * R

    grid = [(R, S) for R in range(16, 257, 16) for S in range(16, 129, 16)]
    macs = {(R, S): 1000 * S + 9000 * R * S + 500 * R for R, S in grid}
    chosen = spread(grid, 9)
    found = estimate({ranks: time(*ranks) for ranks in chosen}, macs)
    for ranks in grid:
        assert found(ranks).median == pytest.approx(time(*ranks), rel=0.02)
    for ranks in chosen:
        assert found(ranks) == at(time(*ranks))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(1e-5, 1e-2), min_size=9, max_size=9))
def test_two_ranks_never_get_faster_by_growing(times: list[float]) -> None:
    grid = [(R, S) for R in (16, 32, 64) for S in (16, 48, 96)]
    others = [(R, S) for R in (24, 40, 80) for S in (24, 64, 128)]
    macs = {(R, S): R * S for R, S in grid + others}
    found = estimate(dict(zip(grid, times, strict=True)), macs)
    for R, S in others:
        for larger in ((R2, S2) for R2, S2 in others if R2 >= R and S2 >= S):
            assert found(larger).median >= found((R, S)).median * (1 - 1e-9)


def test_coefficients_that_would_be_negative_are_none() -> None:
    x = torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(
        nonnegative(x, x @ torch.tensor([0.5, 2.0], dtype=x.dtype)), torch.tensor([0.5, 2.0]).double()
    )
    falling = nonnegative(x, torch.tensor([3.0, 2.0, 1.0], dtype=x.dtype))
    torch.testing.assert_close(falling, torch.tensor([2.0, 0.0], dtype=x.dtype))


def test_spread_takes_ends_and_middles() -> None:
    ladder = [(rank,) for rank in range(16, 513, 16)]
    assert spread(ladder, 3) == [(16,), (512,), (96,)]
    assert sorted(spread(ladder[:4], 6)) == ladder[:4]
    assert spread([], 6) == []


def test_spread_takes_ranks_of_zero() -> None:
    assert spread([(0, 8), (16, 0), (16, 8)], 2) == [(0, 8), (16, 0)]
