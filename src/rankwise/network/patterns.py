"""Patterns of layer names: an exact name, else a glob, or a regular expression after "re:"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern matches: the one that is equal to it, else all that it describes.

    Args:
        pattern: a name ("blocks[0]", "re:x"), a glob ("encoder.*.fc1") or a full-match regular expression
            ("re:.*fc[12]"), tried in this order.
        names: of layers.

    Returns:
        The names, in their order.

    Raises:
        ValueError: if the pattern is no regular expression and no name.

    Example:
        >>> matching("a[0]", ["a[0]", "a0"]), matching("a?", ["a[0]", "a0"])
        (['a[0]'], ['a0'])
    """
    names = list(names)
    return [pattern] if pattern in names else list(filter(_described(pattern), names))


def near(pattern: str, names: Sequence[str]) -> str:
    """Names that somebody may have meant, for a message."""
    text = pattern.removeprefix("re:")
    return ", ".join(difflib.get_close_matches(text, names, n=5, cutoff=0.4) or names[:5])


def _described(pattern: str) -> Callable[[str], bool]:
    if not pattern.startswith("re:"):
        return lambda name: fnmatchcase(name, pattern)
    try:
        expression = re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise ValueError(f"pattern '{pattern}' is no regular expression: {error}") from None
    return lambda name: expression.fullmatch(name) is not None
