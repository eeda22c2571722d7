"""Parse JSON and YAML from untrusted files: unique keys, finite numbers, bounded size and depth."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import yaml

from .text import shown

DEEPEST = 32
LARGEST_JSON = 64 << 20  # bytes; a manifest of ten thousand layers has 10 MB
LARGEST_YAML = 8 << 20
_TOO_DEEP = f"lists and mappings are nested deeper than {DEEPEST}"

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: for invalid JSON, a duplicate key, a number that is not finite, or more than 32 nested levels.

    Example:
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' is there twice
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"{len(text):,} characters exceed the limit of {LARGEST_JSON:,}")
    try:
        value = json.loads(text, object_pairs_hook=_mapping, parse_float=_float, parse_constant=_float)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(value)
    return value


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, read as safe YAML without aliases.

    Raises:
        ValueError: as `parse_json`, and for an alias: a few lines of them make more values than fit in memory.

    Example:
        >>> parse_yaml("a: [1, 2]")
        {'a': [1, 2]}
    """
    if len(text) > LARGEST_YAML:
        raise ValueError(f"{len(text):,} characters exceed the limit of {LARGEST_YAML:,}")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"aliases such as *{shown(event.anchor)[1:-1]} are not read; write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(_TOO_DEEP)
        return yaml.load(text, Loader=_Strict)  # a subclass of the safe loader
    except (yaml.YAMLError, OverflowError, TypeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


class _Strict(_Loader):
    """The safe loader, but it refuses duplicate keys and numbers that are not finite."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in getattr(node, "value", ())]
        _check_keys(keys)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: Any) -> float:
        return _float(super().construct_yaml_float(node))


_Strict.add_constructor("tag:yaml.org,2002:float", _Strict.construct_yaml_float)


def is_finite(value: object) -> bool:
    """Whether this is a number that a float can hold, and no infinity or NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_count(value: object) -> bool:
    """Whether this is a whole number from 0 to the largest that tensors can have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def is_text(value: object) -> bool:
    """Whether this is text."""
    return isinstance(value, str)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_keys([key for key, _ in pairs])
    return dict(pairs)


def _check_keys(keys: list[Any]) -> None:
    seen = set()
    for key in keys:
        try:
            twice = key in seen
        except TypeError:
            raise ValueError(f"a key is {shown(key)}, which is neither text nor a number") from None
        if twice:
            raise ValueError(f"the key {shown(key)} is there twice")
        seen.add(key)


def _float(text: Any) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {shown(text)[:40]} is not finite")
    return number


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        nests = [each for each in level if isinstance(each, (list, dict))]
        level = [item for each in nests for item in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)
