"""Weights that are drawn to low-rank ones, or cut to them, again and again while they learn."""

from __future__ import annotations

from .rank_pruning import RankPruning
from .split import Admm, LearningCompression, Split

__all__ = ["Admm", "LearningCompression", "RankPruning", "Split"]
