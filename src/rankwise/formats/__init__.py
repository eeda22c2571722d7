"""Ways to factorise a weight; `FORMATS` lists them by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..layers.kinds import Role
from ..names import read_format
from .base import Cost, Factors, Format, LowRank, Ranks
from .block_term import BlockTerm
from .cp import CP, CP3
from .head_svd import HeadSVD
from .hierarchical import HierarchicalTucker
from .kronecker import Kronecker
from .nystrom import Nystrom
from .pivoted_svd import PivotedSVD
from .semi_tensor import SemiTensorRing, SemiTensorTrain
from .slr import SparseLowRank, Staircase
from .spatial_svd import SpatialSVD
from .svd import SVD
from .tensor_train import TensorRing, TensorTrain
from .tucker import Tucker
from .tucker2 import Tucker2

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        SVD(),
        PivotedSVD(),
        SpatialSVD(),
        Tucker2(),
        SparseLowRank(),
        Staircase(),
        Nystrom(),
        HeadSVD(),
        CP3(),
        CP(),
        BlockTerm(),
        TensorTrain(),
        TensorRing(),
        SemiTensorTrain(),
        SemiTensorRing(),
        HierarchicalTucker(),
        Kronecker(),
        Tucker(),
    )
}


def register(format: Format) -> Format:
    """Make a format known by name to plans, artifacts and the command line.

    Raises:
        ValueError: if the name is taken.
    """
    if format.name in FORMATS or format.name == AUTO:
        raise ValueError(f"there is a format {format.name!r} already; give this one another name")
    FORMATS[format.name] = format
    return format


# How users choose formats: one or several names or objects, or objects by name; "auto" means all. A name may have
# settings: "stt:slices=4".
SomeFormats = str | Format | Sequence[str | Format] | Mapping[str, Format]
AUTO = "auto"


def get_formats(formats: SomeFormats) -> dict[str, Format]:
    """Formats by name, in the given order.

    Raises:
        ValueError: for an unknown name, or an object under a name that is not its own.

    Example:
        >>> list(get_formats(["svd", Tucker2()])), len(get_formats("auto")) == len(FORMATS)
        (['svd', 'tucker2'], True)
    """
    if isinstance(formats, Mapping):
        for name, format in formats.items():
            if name != format.name:
                raise ValueError(
                    f"formats: the format under the name {name!r} is called {format.name!r}; use that name"
                )
        return dict(formats)
    found: dict[str, Format] = {}
    for one in [formats] if isinstance(formats, (str, Format)) else formats:
        if one == AUTO:
            found = {**FORMATS, **found}
        else:
            format = get_format(one)
            found[format.name] = format
    return found


def get_format(name: str | Format, formats: Mapping[str, Format] | None = None) -> Format:
    """The format of a name, from `formats` first; an object is returned unchanged.

    Args:
        name: of a format, with settings after a colon: "tt", "stt:slices=4".
        formats: by name.

    Raises:
        ValueError: for an unknown name (with near ones and all known ones), an unknown setting, or a value that it
            cannot have.

    Example:
        >>> get_format("stt:slices=4,inputs=4x16").name
        'stt:slices=4,inputs=4x16'
    """
    if isinstance(name, Format):
        return name
    if formats and name in formats:
        return formats[name]
    own, settings = read_format(name if isinstance(name, str) else repr(name), sorted(FORMATS))
    return _with(FORMATS[own], tuple(settings.items())) if settings else FORMATS[own]


def of_role(role: Role) -> dict[str, Format]:
    """The formats that take sites of a role, by name.

    Example:
        >>> list(of_role(Role.HIDDEN))
        ['nystrom']
    """
    return {name: format for name, format in FORMATS.items() if role in format.roles}


def is_registered(name: str) -> bool:
    """Whether the name, with settings or without, is known wherever it is read."""
    return name.partition(":")[0] in FORMATS


@lru_cache(maxsize=256)  # the chains of one format share one instance
def _with(format: Format, settings: tuple[tuple[str, Any], ...]) -> Format:
    return type(format)(**dict(settings))


__all__ = [
    "AUTO",
    "FORMATS",
    "Cost",
    "Factors",
    "Format",
    "LowRank",
    "Ranks",
    "SomeFormats",
    "get_format",
    "get_formats",
    "is_registered",
    "of_role",
    "register",
]
