"""Search ranks in training and train what they make: the unified framework."""

from __future__ import annotations

from .dissimilarity import Dissimilarity
from .framework import UnifiedReport, unified

__all__ = ["Dissimilarity", "UnifiedReport", "unified"]
