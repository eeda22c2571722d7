"""Measure a network: accuracy, agreement with another one, latency, size."""

from __future__ import annotations

from .accuracy import accuracy, agreement
from .latency import Latency, latency
from .size import Size, size
from .storage import LayerStorage, Storage, sparse_bytes, storage
from .trials import Trials, divergence

__all__ = [
    "Latency",
    "LayerStorage",
    "Size",
    "Storage",
    "Trials",
    "accuracy",
    "agreement",
    "divergence",
    "latency",
    "size",
    "sparse_bytes",
    "storage",
]
