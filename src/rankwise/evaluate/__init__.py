"""Measure a network: accuracy, agreement with another one, latency, size; and the machine it runs on."""

from __future__ import annotations

from ..latency import Latency, Ratio
from .accuracy import accuracy, agreement
from .latency import latency
from .limits import Limits, machine_limits
from .roofline import LayerRoofline, Roofline, roofline
from .size import Size, size
from .storage import LayerStorage, Storage, sparse_bytes, storage
from .trials import Trials, divergence

__all__ = [
    "Latency",
    "LayerRoofline",
    "LayerStorage",
    "Limits",
    "Ratio",
    "Roofline",
    "Size",
    "Storage",
    "Trials",
    "accuracy",
    "agreement",
    "divergence",
    "latency",
    "machine_limits",
    "roofline",
    "size",
    "sparse_bytes",
    "storage",
]
