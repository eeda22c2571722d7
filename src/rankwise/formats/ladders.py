"""Ranks to try from small to large, and numbers split into factors."""

from __future__ import annotations

import math

import torch

from .base import Ranks


class Step(int):
    """A step between ranks: powers of two below the number, its multiples up to a block, multiples of the block above.

    Attributes:
        block: what an engine computes at once; a multiple of the number.

    Example:
        >>> steps(60, Step(4, block=16))
        [1, 2, 4, 8, 12, 16, 32, 48, 60]
    """

    block: int

    def __new__(cls, fine: int, block: int = 1) -> Step:
        step = super().__new__(cls, fine)
        step.block = max(block, fine)
        assert step.block % fine == 0
        return step


def nearest(rank: float, step: int) -> int:
    """The rank of a ladder that is nearest to a number.

    Example:
        >>> [nearest(rank, Step(4, block=16)) for rank in (1, 9, 23, 25)], nearest(1, 4)
        ([1, 8, 16, 32], 4)
    """
    if isinstance(step, Step):
        if rank < step:
            return 1 << max(0, round(math.log2(max(rank, 1))))
        step = step.block if rank > step.block else int(step)
    return max(1, round(rank / step)) * int(step)


def steps(limit: int, step: int, most: int | None = None) -> list[int]:
    """Multiples of `step` up to `limit`, and `limit`; thinned to about `most` values, evenly in logarithm."""
    tried = set(range(step, limit + 1, step))
    if isinstance(step, Step):
        fine = range(step, min(limit, step.block) + 1, step)
        tried = {*(1 << k for k in range(int(step).bit_length() - 1)), *fine, *range(step.block, limit + 1, step.block)}
    values = sorted({*(rank for rank in tried if rank < limit), limit})
    if most is None or len(values) <= most:
        return values
    targets = torch.logspace(0, 1, most).sub(1).div(9).mul(len(values) - 1).round().long().tolist()
    return sorted({values[index] for index in targets})


def single(limit: int, step: int) -> list[Ranks]:
    """The ladder of a form with one rank: at most 32 values."""
    return [(rank,) for rank in steps(limit, step, 32)]


def proportional(limits: Ranks, step: int, count: int = 24) -> list[Ranks]:
    """Ranks that grow together up to their limits: multiples of `step`, or the limit."""
    found: dict[Ranks, None] = {}
    for share in torch.logspace(-2, 0, count, dtype=torch.float64).tolist():
        rounded = [nearest(share * limit, step) for limit in limits]
        found[tuple(min(rank, limit) for rank, limit in zip(rounded, limits, strict=True))] = None
    return list(found)


def capped(limits: Ranks, step: int, count: int = 24) -> list[Ranks]:
    """One rank everywhere, or the limit where that is less: what forms of many bonds usually have.

    Example:
        >>> capped((2, 4, 3), 1)
        [(1, 1, 1), (2, 2, 2), (2, 3, 3), (2, 4, 3)]
    """
    return [tuple(min(rank, limit) for limit in limits) for rank in steps(max(limits), step, count)]


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def split_number(number: int, parts: int) -> tuple[int, ...]:
    """Factors as equal as possible, the largest first; padded with ones.

    Example:
        >>> split_number(96, 3), split_number(7, 2)
        ((6, 4, 4), (7, 1))
    """
    if parts == 1:
        return (number,)
    smallest = max(d for d in divisors(number) if d**parts <= number)
    return (*split_number(number // smallest, parts - 1), smallest)
