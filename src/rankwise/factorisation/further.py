"""Batches beyond those that a plan is made from: for fits, and to judge between fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from ..running.batches import Again, Batches
from ..running.calling import samples_in

HELD_OUT = 8  # every eighth batch judges


class Further:
    """Batches beyond those that a plan is made from: every eighth judges where `judges`, the others are fitted to.

    Example:
        >>> import torch
        >>> further = Further(list(map(torch.tensor, [[0], [1], [2]])), judges=True)
        >>> [int(batch) for batch in further.with_fitted([torch.tensor([9])])], len(list(further.held_out))
        ([9, 0, 1], 1)
    """

    def __init__(self, data: Iterable[Any], *, judges: bool) -> None:
        self.batches = Batches.of(data)
        self._first = min(HELD_OUT, len(self.batches)) - 1 if judges else None
        if judges and len(self.batches) < 2:
            raise ValueError(
                'method="auto" judges fits on one batch of refit= and fits to the others, and there is only one batch; '
                "give more of them, or name the method"
            )

    def _judges(self, index: int) -> bool:
        return self._first is not None and index % HELD_OUT == self._first

    def _picked(self, judging: bool) -> Iterator[Any]:
        return (batch for index, batch in enumerate(self.batches) if self._judges(index) == judging)

    @property
    def held_out(self) -> Iterable[Any]:
        """The batches that judge."""
        return Again(lambda: self._picked(True))

    @property
    def as_many_fitted(self) -> Iterable[Any]:
        """As many of the batches that are fitted to."""
        count = sum(self._judges(index) for index in range(len(self.batches)))
        return Again(lambda: islice(self._picked(False), count))

    def with_fitted(self, data: Iterable[Any]) -> Iterable[Any]:
        """The data, and the batches that are fitted to."""
        return Again(lambda: chain(data, self._picked(False)))

    def growth(self, data: Iterable[Any]) -> float:
        """How many times as many samples there are as in the data alone."""
        own = Batches.of(data).samples
        return 1 + sum(map(samples_in, self._picked(False))) / own
