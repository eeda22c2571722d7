"""Ways to factorise a weight; `FORMATS` lists them by name."""

from __future__ import annotations

from collections.abc import Mapping

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


def get_format(name: str, formats: Mapping[str, Format] | None = None) -> Format:
    """The format of that name; with settings of its own where `formats` holds it.

    Raises:
        ValueError: for a name that does not exist, with near ones and all that do.
    """
    if formats and name in formats:
        return formats[name]
    check_name("format", name, sorted(FORMATS))
    return FORMATS[name]


__all__ = ["FORMATS", "Cost", "Factors", "Format", "LowRank", "Ranks", "get_format"]
