"""Measure a network: accuracy or agreement with another one, latency, size; and the limits of the machine."""

from __future__ import annotations

from ..latency import Latency, Ratio
from ..running.outputs import Outputs
from .answers import Changes, changes
from .by_layer import layer_errors
from .comparisons import agreement, cosine, divergence, relative_error
from .limits import Limits, machine_limits
from .measures import MEASURES, Measure, compared, measure, measure_of_plans, measures_for, shown
from .next_token import perplexity, predicts_next
from .rooflines import LayerRoofline, Roofline, roofline
from .scores import accuracy
from .sizes import Size, size
from .speed import latency
from .stored_size import LayerStorage, Storage, sparse_bytes, storage
from .trials import Trials

__all__ = [
    "MEASURES",
    "Changes",
    "Latency",
    "LayerRoofline",
    "LayerStorage",
    "Limits",
    "Measure",
    "Outputs",
    "Ratio",
    "Roofline",
    "Size",
    "Storage",
    "Trials",
    "accuracy",
    "agreement",
    "changes",
    "compared",
    "cosine",
    "divergence",
    "latency",
    "layer_errors",
    "machine_limits",
    "measure",
    "measure_of_plans",
    "measures_for",
    "perplexity",
    "predicts_next",
    "relative_error",
    "roofline",
    "shown",
    "size",
    "sparse_bytes",
    "storage",
]
