"""Ways to factorise a weight; `FORMATS` lists them by name."""

from __future__ import annotations

from .base import Cost, Factors, Format, LowRank, Ranks
from .spatial_svd import SpatialSVD
from .svd import SVD
from .tucker2 import Tucker2

FORMATS: dict[str, Format] = {format.name: format for format in (SVD(), SpatialSVD(), Tucker2())}


def get_format(name: str) -> Format:
    """The format of that name.

    Raises:
        ValueError: listing the names that exist.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; the formats are {', '.join(sorted(FORMATS))}")
    return FORMATS[name]


__all__ = ["FORMATS", "Cost", "Factors", "Format", "LowRank", "Ranks", "get_format"]
