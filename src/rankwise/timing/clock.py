"""Time several runs in turns: medians and their confidence intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf
from statistics import median

import torch

from .product import FEWEST, Product, Run, one_run

# Rounds for whole networks, everywhere.
ROUNDS, WARMUP = 30, 3
# A round is the median of several runs, at most 20, so that all rounds together take about this many seconds.
SECONDS, RUNS = 0.5, 20
# Of the interval around a median.
CONFIDENCE = Fraction(95, 100)
# Fields of a `Latency` without its rounds.
FIGURES = ("median", "low", "high")
# Medians of two measurements of one network differ by about this share.
NOISE = 0.02
# Runs whose intervals are too wide are repeated at most this often.
AGAIN = 4
# Runs that are measured narrowly go on for this long at least: slow moments of a machine last a tenth of a second.
SPAN = 0.2
# Each of them needs this share of its rounds in good moments.
GOOD = 0.5


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds for one forward.

    Attributes:
        median: of all rounds.
        low, high: 95 % confidence interval of the median, for any distribution; with fewer than six rounds the smallest
            and largest round.
        rounds: seconds of every round; empty if the time was computed, not measured.

    Example:
        >>> print(Latency(median=2e-3, low=1.9e-3, high=2.2e-3))
        2.000 ms (1.900 to 2.200)
    """

    median: float
    low: float
    high: float
    rounds: tuple[float, ...] = field(default=(), repr=False, compare=False)

    def __mul__(self, factor: float) -> Latency:
        rounds = tuple([factor * seconds for seconds in self.rounds])
        return Latency(median=self.median * factor, low=self.low * factor, high=self.high * factor, rounds=rounds)

    def __truediv__(self, other: Latency) -> Ratio:
        """This time over the other; from pairs of rounds if both were timed in turns."""
        if self.rounds and len(self.rounds) == len(other.rounds):
            if len(self.rounds) < FEWEST:
                return Ratio(median=self.median / other.median, low=0.0, high=inf)
            pairs = zip(self.rounds, other.rounds, strict=True)
            paired = summary([own / others for own, others in pairs])
            return Ratio(median=paired.median, low=paired.low, high=paired.high)
        return Ratio(median=self.median / other.median, low=self.low / other.high, high=self.high / other.low)

    def __str__(self) -> str:
        return f"{1e3 * self.median:.3f} ms ({1e3 * self.low:.3f} to {1e3 * self.high:.3f})"


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One time over another; dense over compressed is a speed-up.

    Attributes:
        median: of the ratios of all rounds.
        low, high: 95 % confidence interval of the median; unbounded with fewer than six rounds.

    Example:
        >>> print(Ratio(median=1.07, low=0.97, high=1.21))
        within noise (0.97 to 1.21)
        >>> print(Ratio(median=1.5, low=1.4, high=1.6))
        1.50x faster (1.40 to 1.60)
    """

    median: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether both times may be the same: 1 lies in the interval, or the median is within `NOISE` of 1."""
        return self.low <= 1 <= self.high or abs(self.median - 1) < NOISE

    def __str__(self) -> str:
        if self.high == inf:
            return f"within noise (fewer than {FEWEST} rounds)"
        if self.is_noise:
            return f"within noise ({self.low:.2f} to {self.high:.2f})"
        if self.median > 1:
            return f"{self.median:.2f}x faster ({self.low:.2f} to {self.high:.2f})"
        return f"{1 / self.median:.2f}x slower ({1 / self.high:.2f} to {1 / self.low:.2f})"


def timed(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int | None = None,
    warmup: int = WARMUP,
    before: Mapping[str, Callable[[], object]] | None = None,
    product: Product | None = None,
    narrow: float | None = None,
) -> dict[str, Latency]:
    """Times of runs that take turns.

    Args:
        runs: functions to time, by name.
        rounds: measured rounds. By default 30, each the median of enough turns to fill half a second together: thirty
            turns of a few microseconds would all fall into one moment of the machine.
        warmup: rounds before them.
        before: called before each run, not timed.
        product: for runs whose work the calling thread does alone: time in which another process had the core does not
            count.
        narrow: with a product, only runs in good moments of the machine count; runs whose interval is wider than this
            share of the median, or that had few good moments, get further rounds, up to `AGAIN` times as many again;
            only for runs of the same speed in all rounds.
    """
    turns = 1
    if rounds is None:
        first = in_turns(runs, 1, warmup, before, product)
        rounds, warmup, taken = ROUNDS, 0, sum(seconds[0] for seconds in first.values())
        turns = min(max(int(SECONDS / (ROUNDS * taken)), 1), RUNS) if taken > 0 else RUNS
    if narrow is None or product is None:
        return {
            name: _rounds(each, turns) for name, each in in_turns(runs, rounds * turns, warmup, before, product).items()
        }
    return _narrow(runs, rounds, turns, warmup, before, product, narrow)


def _narrow(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    turns: int,
    warmup: int,
    before: Mapping[str, Callable[[], object]] | None,
    product: Product,
    narrow: float,
) -> dict[str, Latency]:
    """As `timed`, until all intervals are narrow."""
    taken: dict[str, list[Run]] = {name: [] for name in runs}
    began, left, todo = time.perf_counter(), AGAIN + 1, list(runs)
    found: dict[str, Latency] = {}
    while todo and left:
        for name, more in _turns({name: runs[name] for name in todo}, rounds * turns, warmup, before, product).items():
            taken[name] += more
        warmup = 0
        if time.perf_counter() - began < SPAN:
            continue
        left -= 1
        good = {name: product.good(taken[name]) for name in todo}
        found |= {name: _rounds(product.own(taken[name], good[name]), turns) for name in todo}
        todo = [
            name
            for name, time in found.items()
            if name in good and (time.high - time.low > narrow * time.median or len(good[name]) < GOOD * rounds * turns)
        ]
    return found


def _rounds(seconds: Sequence[float], turns: int) -> Latency:
    """The summary of rounds of several turns, each round by its median."""
    return summary([median(seconds[start : start + turns]) for start in range(0, len(seconds), turns)])


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    before: Mapping[str, Callable[[], object]] | None = None,
    product: Product | None = None,
) -> dict[str, list[float]]:
    """Seconds of every measured round by name, as for `timed`; round r starts with run r modulo their number."""
    taken = _turns(runs, rounds, warmup, before, product)
    return {name: [run.wall for run in each] if product is None else product.own(each) for name, each in taken.items()}


def _turns(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    before: Mapping[str, Callable[[], object]] | None,
    product: Product | None,
) -> dict[str, list[Run]]:
    names = list(runs)
    taken: dict[str, list[Run]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            if product is not None:
                product()
            if before is not None:
                before[name]()
            run = one_run(runs[name], alone=product is not None)
            if turn >= warmup:
                taken[name].append(run._replace(place=0 if product is None else len(product.seconds)))
    if product is not None:
        product()  # runs are judged by the products before and after them
    return taken


def summary(seconds: Sequence[float]) -> Latency:
    """Median and its confidence interval from order statistics.

    The median lies between the k-th smallest and the k-th largest of n independent runs, unless fewer than k runs fall
    on one side of it: `P = 2 sum_(i<k) C(n, i) / 2^n`. k is the largest number with P at most 5 %.

    Example:
        >>> summary([5.0, 1.0, 3.0, 2.0, 4.0, 6.0, 7.0, 8.0, 9.0])
        Latency(median=5.0, low=2.0, high=8.0)
    """
    ordered, rounds = sorted(seconds), len(seconds)
    k, tail, ways = 0, 1, 1
    while 2 * tail <= (1 - CONFIDENCE) * 2**rounds:
        k += 1
        ways = ways * (rounds - k + 1) // k  # to choose k of them
        tail += ways
    k = max(k, 1)
    return Latency(median=median(ordered), low=ordered[k - 1], high=ordered[rounds - k], rounds=tuple(seconds))


def synchronised(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The run, waiting until its work is done: on a GPU, launching a kernel returns earlier."""
    if device.type != "cuda":
        return run

    def waiting() -> None:
        run()
        torch.cuda.synchronize(device)

    return waiting


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Inside, torch uses this number of threads; its own setting is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
