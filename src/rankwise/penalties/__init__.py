"""Penalties that draw weights towards low rank, and the proximal step of one of them."""

from __future__ import annotations

from .measures import MEASURES, Measure, get_measure
from .spectral_penalty import Penalised, SpectralPenalty, spectral
from .thresholding import SoftThreshold, soft_threshold, soft_threshold_

__all__ = [
    "MEASURES",
    "Measure",
    "Penalised",
    "SoftThreshold",
    "SpectralPenalty",
    "get_measure",
    "soft_threshold",
    "soft_threshold_",
    "spectral",
]
