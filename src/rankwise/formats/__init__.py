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
    """Make a format known by its name: plans, artifacts and the command line take it like all others.

    Raises:
        ValueError: for a name that another format has.
    """
    if format.name in FORMATS or format.name == AUTO:
        raise ValueError(f"there is a format {format.name!r} already; give this one another name")
    FORMATS[format.name] = format
    return format


# What users choose formats by: names and objects, one or several, or objects by their names; "auto" for all there are.
SomeFormats = str | Format | Sequence[str | Format] | Mapping[str, Format]
AUTO = "auto"


def get_formats(formats: SomeFormats) -> dict[str, Format]:
    """Formats by name, in the order in which they are written.

    Raises:
        ValueError: for a name that does not exist, or an object under another name than its own.

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
    """The format of that name, the one in `formats` where it holds one; an object is returned as it is.

    Raises:
        ValueError: for a name that does not exist, with near ones and all that do.
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
