"""Ways to factorise a weight; `FORMATS` lists them by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..names import check_name
from .base import Cost, Factors, Format, LowRank, Ranks
from .block_term import BlockTerm
from .cp import CP, CP3
from .hierarchical import HierarchicalTucker
from .kronecker import Kronecker
from .pivoted_svd import PivotedSVD
from .slr import SparseLowRank, Staircase
from .spatial_svd import SpatialSVD
from .svd import SVD
from .tensor_train import SemiTensorRing, SemiTensorTrain, TensorRing, TensorTrain
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


# How users choose formats: one or several names or objects, or objects by name; "auto" means all.
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
        found = {**FORMATS, **found} if one == AUTO else {**found, str(one): get_format(one)}
    return found


def get_format(name: str | Format, formats: Mapping[str, Format] | None = None) -> Format:
    """The format of a name, from `formats` first; an object is returned unchanged.

    Raises:
        ValueError: for an unknown name, with similar names and all known ones.
    """
    if isinstance(name, Format):
        return name
    if formats and name in formats:
        return formats[name]
    check_name("format", name, sorted(FORMATS))
    return FORMATS[name]


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
    "register",
]
