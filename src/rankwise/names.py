"""The names that users write, known before PyTorch is imported, so that a typo is reported at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

METRICS = ("input", "diagonal", "fisher", "weight", "without_bias", "uncentred", "magnitude", "pooled", "rows")
FORMATS = (
    *("svd", "pivoted_svd", "spatial_svd", "tucker2", "slr", "slr3", "nystrom", "head_svd"),
    *("cp3", "cp", "btd", "tt", "tr", "stt", "str", "ht", "kronecker", "tucker"),
)
RULES = (
    *("knapsack", "fisher", "sensitivity", "bayesian", "bolaco", "zero_sum"),
    *("continuous", "minimax", "drank", "uniform"),
    *("energy", "effective_rank", "stable_rank", "evbmf", "gavish_donoho"),
)
TECHNIQUES = (
    *("maestro", "flexrank", "penalty", "soft_threshold", "rank_pruning"),
    *("learning_compression", "admm", "dynamical", "svd_training", "warm_up", "subspace"),
)
# Methods of the literature, each with its own metric, rule, formats and statistics.
METHOD_SETS = ("svd", "asvd", "fwsvd", "svd_llm", "bolaco", "modegpt", "zs_svd", "lems")
STORAGES = ("plain", "entropy", "int8+entropy")
ENGINES = ("torch", "compile", "onnxruntime", "executorch", "cuda")


class Setting(NamedTuple):
    """A setting of a format: how its value is written, how that is read, an example, and what it says."""

    form: str
    read: Callable[[str], Any]
    example: str
    about: str


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


_SIZE = "[1-9][0-9]{0,6}"
_SIZES = rf"{_SIZE}(x{_SIZE}){{0,4}}"
_OUTPUTS = "sizes of the modes that outputs are read as; their product is the number of outputs"
_INPUTS = "the same of the inputs (channels)"
_SPLIT = {"outputs": Setting(_SIZES, _sizes, "8x16x6", _OUTPUTS), "inputs": Setting(_SIZES, _sizes, "4x16x12", _INPUTS)}
_IN_TWO = {key: Setting(f"{_SIZE}x{_SIZE}", _sizes, "32x24", each.about) for key, each in _SPLIT.items()}
_SLICES = Setting(rf"(?!1$){_SIZE}", int, "4", "slices of a mode that one factor serves alike, a divisor of its size")
_CORES = Setting("outer|all", str, "all", "factors that serve slices: outer, the first and last one; all but the first")
_TREE = Setting(
    form=r"(?!.*(.).*\1)([tczhwq]+/[tczhwq]+|[1-5]+/[1-5]+)",
    read=str,
    example="th/cw",
    about="leaves on either side of the root, each side merged from left to right: t outputs, c channels, z, h, w "
    "planes, rows and columns of the kernel, q all its taps; of a matrix the numbers of its modes, 12/34",
)
_KERNEL = Setting(_SIZES, _sizes, "3x1", "kernel of the factor across slices; sizes of both factors multiply")
_SEMI_TENSOR = {"slices": _SLICES, "cores": _CORES, **_SPLIT}
# Settings of formats, in the order in which a name has them: "tt:outputs=8x16x6,inputs=4x16x12".
SETTINGS: dict[str, dict[str, Setting]] = {
    "tt": _SPLIT,
    "tr": _SPLIT,
    "stt": _SEMI_TENSOR,
    "str": _SEMI_TENSOR,
    "ht": {"tree": _TREE, **_SPLIT},
    "btd": {"inputs": _IN_TWO["inputs"]},
    "nystrom": {"order": Setting("elimination|leverage", str, "leverage", "which hidden units leave first")},
    "kronecker": {"kernel": _KERNEL, **_IN_TWO},
}


def read_format(text: str, known: Iterable[str] = FORMATS, where: str = "") -> tuple[str, dict[str, Any]]:
    """A format's own name, and its settings, of a name as it is written.

    Args:
        text: the name, with settings after a colon.
        known: names of formats.
        where: the start of a message, such as the option.

    Raises:
        ValueError: for an unknown format (with near names), an unknown setting (with those that there are), or a value
            that it cannot have.

    Example:
        >>> read_format("tt:outputs=8x16x6,inputs=4x16x12")
        ('tt', {'outputs': (8, 16, 6), 'inputs': (4, 16, 12)})
    """
    name, colon, written = text.partition(":")
    check_name("format", name, known, where)
    offered, settings = SETTINGS.get(name, {}), dict[str, Any]()
    for part in written.split(",") if colon else ():
        key, _, value = part.strip().partition("=")
        if key not in offered:
            own = ", ".join(f"{each}={setting.example}" for each, setting in offered.items())
            raise ValueError(
                f"{where}format {text!r}: there is no setting {key!r}; "
                + (f"its settings are, for example, {own}" if own else f"{name} has no settings")
            )
        if key in settings:
            raise ValueError(f"{where}format {text!r}: {key} stands there twice; keep one")
        if not re.fullmatch(offered[key].form, value):
            raise ValueError(
                f"{where}format {text!r}: {key} is {value!r}; write for example {key}={offered[key].example}: "
                f"{offered[key].about}"
            )
        settings[key] = offered[key].read(value)
    return name, settings


def written_format(name: str, settings: Mapping[str, Any]) -> str:
    """The inverse of `read_format`: "stt:slices=4"."""
    values = {key: "x".join(map(str, v)) if isinstance(v, (tuple, list)) else v for key, v in settings.items()}
    return ":".join([name, *filter(None, [",".join(f"{key}={value}" for key, value in values.items())])])


AT_HAND = "auto"  # the name of the engine at hand, see `latency.at_hand`


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
        >>> check_name("storage", "plane", STORAGES)
        Traceback (most recent call last):
        ValueError: unknown storage 'plane'; did you mean plain? The storages are plain, entropy, int8+entropy
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


def made_of(what: str, text: str, known: Mapping[str, type]) -> Any:
    """The object that a name with settings after a colon describes: "energy:share=0.99".

    Args:
        what: is named, such as "rule".
        known: frozen dataclasses by name, every field with a default whose type its setting has.

    Raises:
        ValueError: for an unknown name (with near ones), an unknown setting (with those that there are), or a value of
            another type.

    Example:
        >>> from dataclasses import make_dataclass
        >>> made_of("rule", "energy:share=0.99", {"energy": make_dataclass("Energy", [("share", float, 0.9)])})
        Energy(share=0.99)
    """
    name, _, written = text.partition(":")
    check_name(what, name, sorted(known))
    types: dict[str, type] = {field.name: type(field.default) for field in fields(known[name])}
    settings: dict[str, Any] = {}
    for part in filter(None, written.split(",")):
        key, _, value = part.strip().partition("=")
        if key not in types:
            offered = f"its settings are {', '.join(types)}" if types else "it has no settings"
            raise ValueError(f"{what} {text!r}: there is no setting {key!r}; {offered}")
        settings[key] = _read(f"{what} {text!r}: {key}", value, types[key])
    return known[name](**settings)


def _read(where: str, value: str, kind: type) -> Any:
    if kind is bool and value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        if kind is not bool:
            return kind(value)
    except ValueError:
        pass
    wanted = "true or false" if kind is bool else f"of type {kind.__name__}"
    raise ValueError(f"{where} is {value!r}, which is not {wanted}")
