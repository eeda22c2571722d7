"""Seconds of several runs, taken in turns, and how sure their medians are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import comb
from statistics import median

import torch

# Of the interval around a median.
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds for one forward.

    Attributes:
        median: of all rounds.
        low, high: 95 % confidence interval of the median, whatever the distribution; with fewer than six rounds the
            least and the largest.
    """

    median: float
    low: float
    high: float

    def __mul__(self, factor: float) -> Latency:
        return Latency(median=self.median * factor, low=self.low * factor, high=self.high * factor)


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every measured round by name; round r starts with run r modulo their number.

    Args:
        runs: what is timed.
        rounds: measured rounds.
        warmup: rounds before them.
        before: what goes before each run and is not timed.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            if before is not None:
                before[name]()
            began = time.perf_counter()
            runs[name]()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def summary(seconds: Sequence[float]) -> Latency:
    """Median and its confidence interval from order statistics.

    The median lies between the k-th smallest and the k-th largest of n independent runs unless fewer than k of them
    fall on one side of it, `P = 2 sum_(i<k) C(n, i) / 2^n`.

    Example:
        >>> summary([5.0, 1.0, 3.0, 2.0, 4.0, 6.0, 7.0, 8.0, 9.0])
        Latency(median=5.0, low=2.0, high=8.0)
    """
    ordered, rounds = sorted(seconds), len(seconds)
    k, tail = 0, 1
    while 2 * tail <= (1 - CONFIDENCE) * 2**rounds:
        k += 1
        tail += comb(rounds, k)
    k = max(k, 1)
    return Latency(median=median(ordered), low=ordered[k - 1], high=ordered[rounds - k])


def synchronised(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The run until its work is done: the launch of a kernel on a GPU returns before."""
    if device.type != "cuda":
        return run

    def waiting() -> None:
        run()
        torch.cuda.synchronize(device)

    return waiting


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """So many threads inside, and torch's own setting again after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
