"""Statistics of the inputs of each site: collect, merge, save and load."""

from __future__ import annotations

from .collection import collect
from .moments import Moments
from .store import Statistics

__all__ = ["Moments", "Statistics", "collect"]
