"""What the ranks of sparse low rank mean: nested blocks, and the parameters of the paper.

Letters: T outputs per group, C channels per group, R rank of a level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from ..linalg import sparse_low_rank
from ..linalg.sparse_low_rank import Level
from .base import Ranks


def paper_ranks(k: int, sr: float, rr: float, inputs: int, outputs: int) -> Ranks:
    """Ranks of `slr` for the published parameters: `r = int(k rr)`, and `int(sr n)` of the n neurons unimportant.

    Args:
        k: rank of the truncated SVD.
        sr: sparsity rate, the share of unimportant neurons on each side, 0 to below 1.
        rr: reduction rate, the share of the rank that unimportant neurons keep, 0 to 1.
        inputs, outputs: neurons or channels, per group.

    Returns:
        Rank of all neurons, further rank of the important ones, important inputs, important outputs.

    Raises:
        ValueError: for a share out of range, or a rank below 1.

    Example:
        >>> paper_ranks(6, 0.5, 0.5, 400, 120)
        (3, 3, 200, 60)
    """
    if k < 1 or not 0 <= sr < 1 or not 0 <= rr <= 1:
        raise ValueError(
            f"k must be at least 1, sr from 0 to below 1 and rr from 0 to 1, not k={k}, sr={sr} and rr={rr}"
        )
    rank = int(k * rr)
    return rank, k - rank, inputs - int(inputs * sr), outputs - int(outputs * sr)


def levels_of(ranks: Ranks, T: int, C: int) -> list[Level]:
    """The levels of these ranks, with columns counted in channels; a block may hold less rank, see `built`.

    Example:
        >>> levels_of((2, 3, 10, 20), 40, 30)
        [Level(rank=2, rows=40, columns=30), Level(rank=3, rows=20, columns=10)]
    """
    levels = [Level(ranks[0], T, C)]
    for start in range(1, len(ranks), 3):
        rank, channels, rows = ranks[start : start + 3]
        levels.append(Level(rank, rows, channels))
    return levels


def built(levels: Sequence[Level], taps: int) -> list[Level]:
    """The levels that are stored and computed: no rank exceeds what its block of channels and taps can hold.

    A large rank with a high sparsity rate asks for more, but further components would add nothing.

    Example:
        >>> built(levels_of((5, 15, 7, 2), 20, 64), taps=1)
        [Level(rank=5, rows=20, columns=64), Level(rank=2, rows=2, columns=7)]
    """
    return [level._replace(rank=min(level.rank, level.rows, level.columns * taps)) for level in levels]


def are_nested(levels: Sequence[Level]) -> bool:
    """Whether each level lies inside the one before it, no block is empty, and some rank is above 0."""
    if not any(level.rank for level in levels) or any(min(rows, channels) < 1 for _, rows, channels in levels):
        return False
    return all(a.rows >= b.rows and a.columns >= b.columns for a, b in pairwise(levels))


def bands(levels: Sequence[Level]) -> Iterator[tuple[int, int]]:
    """Rank that each band of outputs reads, and its number of outputs, the most important band first.

    Example:
        >>> list(bands([Level(2, 40, 30), Level(3, 20, 10)]))
        [(5, 20), (2, 20)]
    """
    for first, last, count in sparse_low_rank.bands([level.rows for level in levels]):
        yield sum(level.rank for level in levels[:count]), last - first
