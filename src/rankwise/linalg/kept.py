"""Results that are kept for later, such as those of a curve for the fit after it, up to a limit of memory."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Kept:
    """Results by name, first come, until their tensors take the limit; what comes later is not kept.

    Attributes:
        limit: bytes of tensors.

    Example:
        >>> kept = Kept(limit=100)
        >>> kept.place("first").put(1.5, 80), kept.place("second").put(2.5, 80)
        (True, False)
        >>> kept.place("first").get(), kept.place("second").get()
        (1.5, None)
    """

    limit: int
    _results: dict[Hashable, tuple[Any, int]] = field(default_factory=dict)

    def place(self, *name: Hashable) -> Place:
        """Where one result is kept."""
        return Place(self, name)

    @property
    def size(self) -> int:
        """Bytes of all results."""
        return sum(size for _, size in self._results.values())


@dataclass(frozen=True)
class Place:
    """The place of one result."""

    kept: Kept
    name: Hashable

    def get(self) -> Any:
        """The result; None if there is none."""
        return self.kept._results.get(self.name, (None, 0))[0]

    def put(self, result: Any, size: int) -> bool:
        """Keep a result of so many bytes in place of an earlier one; whether there was room."""
        self.kept._results.pop(self.name, None)
        if self.kept.size + size > self.kept.limit:
            return False
        self.kept._results[self.name] = result, size
        return True
