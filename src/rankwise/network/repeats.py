"""Repeated blocks: layers that differ only in the numbers of their names, folded into one row."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Repeated:
    """Names that stand together; `title` has ranges in place of the numbers that differ."""

    names: tuple[str, ...]

    @property
    def title(self) -> str:
        """The name, or the pattern with its ranges.

        Example:
            >>> Repeated(("h.0.fc", "h.1.fc", "h.2.fc")).title
            'h.[0-2].fc'
        """
        parts = [name.split(".") for name in self.names]
        return ".".join(_range([each[at] for each in parts]) for at in range(len(parts[0])))

    def __len__(self) -> int:
        return len(self.names)


def folded(names: Iterable[tuple[str, Hashable]]) -> list[Repeated]:
    """Fold names that differ in one number and have the same value, in the order of their first.

    Args:
        names: name and value, such as a kind with its shape and costs, in execution order.

    Example:
        >>> [each.title for each in folded([("h.0.fc", 1), ("h.1.fc", 1), ("h.2.fc", 2), ("head", 1)])]
        ['h.[0-1].fc', 'h.2.fc', 'head']
    """
    groups: dict[Hashable, list[str]] = {}
    for name, value in names:
        parts = name.split(".")
        numbers = [at for at, part in enumerate(parts) if part.isdecimal()]
        for at in numbers:  # the first number that an earlier name differs in alone
            key = (".".join([*parts[:at], "*", *parts[at + 1 :]]), value)
            if key in groups:
                groups[key].append(name)
                break
        else:
            group = [name]
            patterns = [".".join([*parts[:at], "*", *parts[at + 1 :]]) for at in numbers]
            for pattern in patterns or [name]:
                groups[(pattern, value)] = group
    return [Repeated(tuple(group)) for group in {id(group): group for group in groups.values()}.values()]


def _range(parts: list[str]) -> str:
    """One part of all names: the part itself, a range, or all of them."""
    different = list(dict.fromkeys(parts))
    if len(different) == 1:
        return different[0]
    numbers = sorted(int(part) for part in different if re.fullmatch(r"\d+", part))
    if numbers == list(range(numbers[0], numbers[0] + len(different))):
        return f"[{numbers[0]}-{numbers[-1]}]"
    return "[" + ",".join(map(str, numbers)) + "]"
