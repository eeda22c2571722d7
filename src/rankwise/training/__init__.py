"""Low rank while training: what ordinary training loops take in."""

from __future__ import annotations

from .rank_search import RankSearch

__all__ = ["RankSearch"]
