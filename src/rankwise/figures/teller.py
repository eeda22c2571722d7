"""What shows a person how far the work is, as far as measuring asks it: the output of a command."""

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
        """Show what is going on while it goes on."""

    def track(self, batches: Iterable[Any], text: str) -> Iterator[Any]:
        """Run over `batches` behind a progress bar."""


def tried(teller: Teller, what: str, run: Callable[[], Value]) -> Value | None:
    """The figure, or None and a note: one figure that cannot be had does not cost the others."""
    try:
        return run()
    except ValueError as error:
        teller.note(f"{what} was not measured: {error}")
        return None
