"""Patterns of layer names: an exact name, else a glob, or a regular expression after "re:"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern matches, in their order: the one equal to it, else all that it describes.

    Args:
        pattern: a name ("blocks[0]", "re:x"), a glob ("encoder.*.fc1") or a full-match regular expression
            ("re:.*fc[12]"), tried in this order.

    Raises:
        ValueError: if the pattern is neither a name nor a valid regular expression.

    Example:
        >>> matching("a[0]", ["a[0]", "a0"]), matching("a?", ["a[0]", "a0"])
        (['a[0]'], ['a0'])
    """
    names = list(names)
    return [pattern] if pattern in names else list(filter(_described(pattern), names))


def near(pattern: str, names: Sequence[str]) -> str:
    """Similar names, for a message."""
    text = pattern.removeprefix("re:")
    return ", ".join(difflib.get_close_matches(text, names, n=5, cutoff=0.4) or names[:5])


def _described(pattern: str) -> Callable[[str], bool]:
    if not pattern.startswith("re:"):
        return lambda name: fnmatchcase(name, pattern)
    try:
        expression = re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise ValueError(f"pattern '{pattern}' is not a valid regular expression: {error}") from None
    return lambda name: expression.fullmatch(name) is not None
