"""Docstrings as the site reads them: examples are blocks of code, and names that share a line are one entry."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Readable(griffe.Extension):
    """The parser knows sessions of Python in sections called `Examples`, and takes what follows a space for a type."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            pattern = re.compile(r"^( {4}\w+(?:, \w+)+):", re.MULTILINE)
            obj.docstring.value = pattern.sub(lambda names: names[0].replace(", ", ","), text)
