"""Estimate the time of ranks from measured ones.

Letters: N measured ranks, F features.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import log1p, prod
from statistics import fmean

import torch
from torch import Tensor

from ..formats import Ranks
from ..timing.clock import FIGURES, Latency

# Sweeps of coordinate descent over at most a few dozen coefficients.
SWEEPS = 2000


def spread(candidates: Sequence[Ranks], count: int) -> list[Ranks]:
    """Ranks to measure: the smallest, then always the one farthest, in `log(1 + rank)`, from those taken.

    Example:
        >>> spread([(16,), (32,), (48,), (64,), (256,)], 3)
        [(16,), (256,), (64,)]
    """
    logs = {ranks: [log1p(rank) for rank in ranks] for ranks in candidates}

    def between(one: Ranks, other: Ranks) -> float:
        return max(abs(a - b) for a, b in zip(logs[one], logs[other], strict=True))

    taken = [min(candidates, key=prod)] if candidates else []
    gaps = {ranks: between(ranks, taken[0]) for ranks in candidates}
    while len(taken) < min(count, len(gaps)):
        taken.append(max(gaps, key=gaps.__getitem__))
        gaps = {ranks: min(gap, between(ranks, taken[-1])) for ranks, gap in gaps.items()}
    return taken


class Estimate:
    """Times of one format at one layer: measured ones as they are, others estimated.

    One rank: a straight line between the measured neighbours; where more ranks seem to take less time, but both are
    within noise, all get their mean. Several: `t = sum_f c_f x_f(ranks)` with `c >= 0`, by
    least squares of the relative errors; the features are 1, the ranks, their products in pairs (a layer of a chain
    joins two ranks) and the MACs. Either way time grows with the ranks if the measured times do. Ranks count as if
    rounded up to whole blocks.

    Args:
        measured: times by ranks.
        macs: of every option, for formats with several ranks.
        block: channels that the engine computes at once.
    """

    def __init__(self, measured: Mapping[Ranks, Latency], macs: Mapping[Ranks, int], block: int = 1) -> None:
        self._macs, self._block = macs, block
        self._single = all(len(ranks) == 1 for ranks in measured)
        self._measured = rising(measured) if self._single else dict(measured)
        if self._single:
            self._ladder = sorted(rank for (rank,) in measured)
        else:
            x_NF = torch.tensor([self._features(ranks) for ranks in measured], dtype=torch.float64)
            t_N = torch.tensor([time.median for time in measured.values()], dtype=torch.float64)
            self._coefficients = nonnegative(x_NF / t_N[:, None], torch.ones_like(t_N)).tolist()

    def __call__(self, ranks: Ranks) -> Latency:
        """The time at these ranks."""
        if ranks in self._measured:
            return self._measured[ranks]
        if not self._single:
            time = sum(c * x for c, x in zip(self._coefficients, self._features(ranks), strict=True))
            return Latency(median=time, low=time, high=time)
        (rank,) = self._padded(ranks)
        if (rank,) in self._measured:
            return self._measured[(rank,)]
        place = bisect(self._ladder, rank)
        if place in (0, len(self._ladder)):  # outside the measured ranks: constant below, in proportion above
            end = self._ladder[min(place, len(self._ladder) - 1)]
            return self._measured[(end,)] * max(rank / end, 1.0)
        below, above = self._ladder[place - 1 : place + 1]
        share = (rank - below) / (above - below)
        one, other = self._measured[(below,)], self._measured[(above,)]
        mixed = {name: (1 - share) * getattr(one, name) + share * getattr(other, name) for name in FIGURES}
        return Latency(**mixed)

    def _features(self, ranks: Ranks) -> list[float]:
        padded = self._padded(ranks)
        return [1.0, *padded, *(a * b for a, b in combinations(padded, 2)), float(self._macs[ranks])]

    def _padded(self, ranks: Ranks) -> Ranks:
        """Ranks above one block rounded up to whole blocks; below it time grows with every rank, or not at all."""
        return tuple([rank if rank < self._block else -(-rank // self._block) * self._block for rank in ranks])


def rising(measured: Mapping[Ranks, Latency]) -> dict[Ranks, Latency]:
    """Times that do not fall as the rank grows, unless they fall by more than noise: neighbours are pooled.

    Some engines really are faster at the next multiple of their block.

    Example:
        >>> times = [Latency(median=m, low=m - 0.5, high=m + 0.5) for m in (1.0, 2.2, 2.0, 9.0, 4.0)]
        >>> [time.median for time in rising({(r,): time for r, time in enumerate(times)}).values()]
        [1.0, 2.1, 2.1, 9.0, 4.0]
    """
    pools: list[list[tuple[Ranks, Latency]]] = []
    for pair in sorted(measured.items()):
        pools.append([pair])
        while len(pools) > 1 and _within_noise(pools[-2], pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return {ranks: _pooled(pool) for pool in pools for ranks, _ in pool}


def _pooled(pool: Sequence[tuple[Ranks, Latency]]) -> Latency:
    if len(pool) == 1:
        return pool[0][1]
    median, low, high = (fmean(getattr(time, name) for _, time in pool) for name in FIGURES)
    return Latency(median=median, low=low, high=high)


def _within_noise(less: Sequence[tuple[Ranks, Latency]], more: Sequence[tuple[Ranks, Latency]]) -> bool:
    """Whether more ranks take less time, and the intervals overlap."""
    one, other = _pooled(less), _pooled(more)
    return other.median < one.median and other.high > one.low


def nonnegative(x_NF: Tensor, y_N: Tensor) -> Tensor:
    """`argmin over c >= 0 of ||x c - y||`, by coordinate descent.

    Example:
        >>> nonnegative(torch.tensor([[1.0, 1.0], [1.0, 2.0]]), torch.tensor([3.0, 5.0])).round(decimals=3)
        tensor([1., 2.])
    """
    scale_F = x_NF.norm(dim=0).clamp_min(torch.finfo(x_NF.dtype).tiny)
    x_NF = x_NF / scale_F
    gram, right = (x_NF.mT @ x_NF).tolist(), (x_NF.mT @ y_N).tolist()
    c = [0.0] * len(right)
    for _ in range(SWEEPS):
        moved = 0.0
        for f, row in enumerate(gram):
            if row[f]:  # the best coefficient with all others held, cut at 0
                new = max(0.0, c[f] + (right[f] - sum(a * b for a, b in zip(row, c, strict=True))) / row[f])
                moved, c[f] = max(moved, abs(new - c[f])), new
        if moved < 1e-9:
            break
    return torch.tensor(c, dtype=x_NF.dtype) / scale_F
