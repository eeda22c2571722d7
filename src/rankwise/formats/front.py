"""The least error at no greater cost, of options that come one curve after the other."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from .base import Cost


class Front:
    """For any cost, the least error of options with no more MACs, or with no more parameters, whichever is larger.

    An option below it is the best so far in at least one of the two units.

    Example:
        >>> front = Front([(Cost(params=10, macs=50), 0.2), (Cost(params=20, macs=40), 0.1)])
        >>> front(Cost(params=15, macs=50)), front(Cost(params=5, macs=60))
        (0.2, inf)
    """

    def __init__(self, options: Iterable[tuple[Cost, float]] = ()) -> None:
        self._stairs: list[tuple[list[int], list[float]]] = [([], []), ([], [])]  # by parameters, by MACs
        self.add(options)

    def __call__(self, cost: Cost) -> float:
        return max(_least(*stair, amount) for stair, amount in zip(self._stairs, cost, strict=True))

    def add(self, options: Iterable[tuple[Cost, float]]) -> None:
        """Take further options in."""
        options = list(options)
        for unit, (amounts, errors) in enumerate(self._stairs):
            pairs = [*zip(amounts, errors, strict=True), *((cost[unit], error) for cost, error in options)]
            stair: list[tuple[int, float]] = []
            for amount, error in sorted(pairs):
                if not stair or error < stair[-1][1]:
                    stair.append((amount, error))
            self._stairs[unit] = [amount for amount, _ in stair], [error for _, error in stair]


def _least(amounts: Sequence[int], errors: Sequence[float], amount: int) -> float:
    place = bisect_right(amounts, amount)
    return errors[place - 1] if place else math.inf
