"""Low rank while training: what ordinary training loops take in."""

from __future__ import annotations

from .expand import expand_, merge_
from .orthogonal import OrthogonalPenalty, WeightSchedule, constrain_, deviation, release_
from .rank_search import RankSearch
from .truncate import truncate

__all__ = [
    "OrthogonalPenalty",
    "RankSearch",
    "WeightSchedule",
    "constrain_",
    "deviation",
    "expand_",
    "merge_",
    "release_",
    "truncate",
]
