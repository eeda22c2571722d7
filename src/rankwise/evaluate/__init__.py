"""Measure a network: accuracy, agreement with another one, latency, size."""

from __future__ import annotations

from .accuracy import accuracy, agreement
from .latency import Latency, latency
from .size import Size, size
from .trials import Trials, divergence

__all__ = ["Latency", "Size", "Trials", "accuracy", "agreement", "divergence", "latency", "size"]
