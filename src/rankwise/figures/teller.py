"""Where measuring reports its progress: the output of a command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

Value = TypeVar("Value")


class Teller(Protocol):
    """Messages and progress bars."""

    def say(self, text: str) -> None:
        """Print a line."""

    def note(self, text: str) -> None:
        """Print a line that should not be missed."""

    def step(self, text: str) -> AbstractContextManager[None]:
        """Show what is going on while it lasts."""

    def track(self, batches: Iterable[Any], text: str) -> Iterator[Any]:
        """Iterate over `batches` with a progress bar."""


def tried(teller: Teller, what: str, run: Callable[[], Value]) -> Value | None:
    """The figure, or None and a note: one figure that cannot be measured does not cost the others."""
    try:
        return run()
    except ValueError as error:
        teller.note(f"{what} was not measured: {error}")
        return None
