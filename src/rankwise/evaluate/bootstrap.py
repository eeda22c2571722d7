"""How sure a comparison of two networks is: rows of text are drawn again and again, both networks on the same ones.

Letters: N rows, R draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .next_token import Surprise

DRAWS, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and its interval.

    Attributes:
        value: of all rows.
        low, high: quantiles of the value over draws of as many rows.

    Example:
        >>> print(Interval(value=1.2, low=1.1, high=1.35))
        1.2 (1.1 to 1.35)
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def mean_interval(sums_N: Tensor, counts_N: Tensor, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """`sum of sums_N / sum of counts_N`, with the interval of 95 % from rows drawn with replacement.

    Args:
        sums_N: of each row, such as the nats by which one network is more surprised than another.
        counts_N: what each row counts, such as its tokens; at least 0, not all 0.
        draws: how often N rows are drawn.
        seed: of the draws; the same for the same rows, so that comparisons share them.

    Raises:
        ValueError: for different numbers of rows, or fewer than two, which say nothing of their scatter.

    Example:
        >>> mean_interval(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0])).value
        0.5

    Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993 (percentile intervals); Koehn, "Statistical
    Significance Tests for Machine Translation Evaluation", EMNLP 2004 (paired draws of text).
    """
    if sums_N.shape != counts_N.shape:
        raise ValueError(f"{len(sums_N)} rows have sums and {len(counts_N)} have counts; they must be the same rows")
    if len(sums_N) < 2:
        raise ValueError("an interval needs at least two rows; give more text, or shorter rows")
    both_N2 = torch.stack([sums_N, counts_N], 1).double().cpu()
    generator = torch.Generator().manual_seed(seed)
    picked_RN = torch.randint(len(both_N2), (draws, len(both_N2)), generator=generator)
    sums_R, counts_R = both_N2[picked_RN].sum(1).unbind(1)
    values_R = (sums_R / counts_R)[counts_R > 0]
    tails = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = values_R.quantile(tails).tolist()
    total, count = both_N2.sum(0).tolist()
    return Interval(value=total / count, low=low, high=high)


def perplexity_ratio(small: Surprise, dense: Surprise, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """`perplexity of small / perplexity of dense` on the same rows, with its interval.

    Args:
        small, dense: of the same rows.
        draws, seed: as for `mean_interval`, with the same errors.

    Raises:
        ValueError: if the rows are not the same.

    Example:
        >>> same = Surprise(nats_N=torch.ones(3), tokens_N=torch.ones(3))
        >>> perplexity_ratio(same, same)
        Interval(value=1.0, low=1.0, high=1.0)
    """
    if not torch.equal(small.tokens_N, dense.tokens_N):
        raise ValueError("the two networks were measured on different rows; measure both on the same batches")
    found = mean_interval(small.nats_N - dense.nats_N, small.tokens_N, draws=draws, seed=seed)
    return Interval(value=math.exp(found.value), low=math.exp(found.low), high=math.exp(found.high))
