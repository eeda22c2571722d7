"""The names that users write, known before PyTorch is imported, so that a typo is reported at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

METRICS = ("input", "diagonal", "fisher", "weight")
FORMATS = (
    *("svd", "pivoted_svd", "spatial_svd", "tucker2", "slr", "slr3", "cp3", "cp", "btd"),
    *("tt", "tr", "stt", "str", "ht", "kronecker", "tucker"),
)
RULES = (
    *("knapsack", "fisher", "sensitivity", "bayesian", "continuous", "minimax", "drank", "uniform"),
    *("energy", "effective_rank", "stable_rank", "evbmf", "gavish_donoho"),
)
STORAGES = ("plain", "entropy", "int8+entropy")
ENGINES = ("torch", "compile", "onnxruntime", "executorch", "cuda")


def check_engine_name(name: str, others: Iterable[str] = (), where: str = "") -> None:
    """Raise a ValueError for an unknown engine; `roofline:FILE.yaml` is one that a file describes."""
    if not name.startswith("roofline:"):
        check_name("engine", name, (*ENGINES, "roofline:FILE.yaml", *others), where)


def check_name(what: str, name: str, known: Iterable[str], where: str = "") -> None:
    """Raise a ValueError for an unknown name, with near names and all known ones.

    Args:
        what: is named, such as "format".
        where: the start of the message, such as the option.

    Example:
        >>> check_name("metric", "inputs", METRICS)
        Traceback (most recent call last):
        ValueError: unknown metric 'inputs'; did you mean input? The metrics are input, diagonal, fisher, weight
    """
    names = list(known)
    if name not in names:
        near = " or ".join(difflib.get_close_matches(str(name), names, n=3, cutoff=0.5))
        hint = f"did you mean {near}? The" if near else "the"
        raise ValueError(f"{where}unknown {what} {name!r}; {hint} {what}s are {', '.join(names)}")


def parted(given: Mapping[str, Any], *kinds: type, where: str = "") -> list[Any]:
    """Keyword arguments as the dataclasses whose fields they name.

    Args:
        kinds: the dataclasses; what is not given keeps its default.
        where: what the message begins with, such as the function.

    Raises:
        TypeError: for a name that none of them has, with those that there are.

    Example:
        >>> from dataclasses import make_dataclass
        >>> parted({"rank": 3}, make_dataclass("Wanted", [("rank", int)]))
        [Wanted(rank=3)]
    """
    names = [{each.name for each in fields(kind)} for kind in kinds]
    known = sorted(set().union(*names))
    if unknown := sorted(given.keys() - set(known)):
        raise TypeError(f"{where}there is no argument {unknown[0]!r}; the further ones are {', '.join(known)}")
    return [kind(**{name: given[name] for name in own & given.keys()}) for kind, own in zip(kinds, names, strict=True)]
