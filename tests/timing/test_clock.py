"""Runs in turns, and medians with their intervals; the clock is a list of numbers."""

from __future__ import annotations

import time

import pytest

from rankwise.timing.clock import Latency, in_turns, summary


def test_warmup_is_not_measured() -> None:
    seconds = in_turns({"a": lambda: None, "b": lambda: None}, rounds=3, warmup=2)
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_what_goes_before_a_run_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def take(seconds: float) -> None:
        now[0] += seconds

    runs = {"a": lambda: take(1.0), "b": lambda: take(2.0)}
    before = {name: (lambda: take(10.0)) for name in runs}
    assert in_turns(runs, rounds=2, warmup=1, before=before) == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


@pytest.mark.parametrize(
    "rounds, place",
    [
        (1, 1), (5, 1),  # no interval of five runs has 95 %: 2 / 2^5 is more than 5 %
        (6, 1), (9, 2), (20, 6), (30, 10),  # tables of the sign test
    ],
)  # fmt: skip
def test_interval_of_the_median(rounds: int, place: int) -> None:
    seconds = [float(value) for value in range(1, rounds + 1)]
    found = summary(seconds[::-1])
    assert found == Latency(median=(rounds + 1) / 2, low=place, high=rounds + 1 - place)


def test_scaled() -> None:
    assert Latency(median=2.0, low=1.0, high=4.0) * 0.5 == Latency(median=1.0, low=0.5, high=2.0)
