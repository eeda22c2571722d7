"""What a verb finds done and adds to."""

from __future__ import annotations

from typing import Protocol, TypeVar

Value = TypeVar("Value")


class Done(Protocol[Value]):
    """What was made before, by the name of its site; a dictionary is one."""

    def __contains__(self, site: object, /) -> bool:
        """Whether it was made."""

    def __getitem__(self, site: str, /) -> Value:
        """What was made."""

    def __setitem__(self, site: str, value: Value, /) -> None:
        """Keep what is made now."""
