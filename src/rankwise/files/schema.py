"""Build dataclasses from the plain values of a file: every field has its declared type, and numbers are finite."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .plain import is_finite
from .text import shown

Built = TypeVar("Built")
_hints = cache(get_type_hints)
_LARGEST = 1 << 63


def built(cls: type[Built], plain: object, where: str = "") -> Built:
    """An object of a dataclass from plain values.

    Args:
        cls: the dataclass; its fields are text, truth values, numbers, None, tuples, mappings and dataclasses of these.
        where: the start of messages.

    Raises:
        ValueError: naming the field that is unknown, missing, or of another type.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Pair:
        ...     left: int
        ...     right: tuple[float, ...] = ()
        >>> built(Pair, {"left": 1, "right": [2, 3.5]})
        Pair(left=1, right=(2, 3.5))
    """
    if not isinstance(plain, dict):
        raise ValueError(f"{where or cls.__name__}: a mapping is needed, not {shown(plain)}")
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    if unknown := [name for name in plain if name not in known]:
        raise ValueError(f"{where}: unknown field {shown(unknown[0])}; the fields are {', '.join(known)}")
    for name, item in known.items():
        if name not in plain and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{where}: the field {name!r} is missing")
    hints = _hints(cls)  # type: ignore[arg-type]
    return cls(**{name: _value(hints[name], value, f"{where}.{name}".lstrip(".")) for name, value in plain.items()})


def _value(hint: Any, value: object, where: str) -> Any:
    if hint is Any:
        return value
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if (value is None and NoneType in inner) or (isinstance(value, str) and str in inner):
            return value
        return _value(next(kind for kind in inner if kind is not NoneType), value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) == len(value):
            return tuple(_value(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    elif origin is not None and origin is not tuple and isinstance(value, dict):
        keys, kind = inner
        return {
            _value(keys, key, where): _value(kind, item, f"{where}[{shown(key, 40)}]") for key, item in value.items()
        }
    elif is_dataclass(hint):
        return built(hint, value, where)  # type: ignore[arg-type]
    elif _is(hint, value):
        return value
    raise ValueError(f"{where} must be {_words(hint)}, not {shown(value)}")


def _is(hint: Any, value: object) -> bool:
    if hint is float:
        return is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    return hint in (str, bool) and isinstance(value, hint)


def _words(hint: Any) -> str:
    words = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}
    if hint in words:
        return words[hint]
    return "a list" if get_origin(hint) is tuple else "a mapping"
