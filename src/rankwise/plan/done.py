"""Results that a verb finds done and adds to."""

from __future__ import annotations

from typing import Protocol, TypeVar

Value = TypeVar("Value")


class Done(Protocol[Value]):
    """Results by site, made before or now; a dictionary is one."""

    def __contains__(self, site: object, /) -> bool:
        """Whether the site's result exists."""

    def __getitem__(self, site: str, /) -> Value:
        """The site's result."""

    def __setitem__(self, site: str, value: Value, /) -> None:
        """Keep a new result."""
