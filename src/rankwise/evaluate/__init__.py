"""Measure a network: accuracy, perplexity, agreement with another one, latency, size; and the machine's limits."""

from __future__ import annotations

from ..latency import Latency, Ratio
from ..running.outputs import Outputs
from .answers import Changes, changes
from .bootstrap import Interval, mean_interval, perplexity_ratio
from .by_layer import layer_errors
from .choices import Answers, Question, multiple_choice
from .comparisons import agreement, cosine, divergence, relative_error
from .limits import Limits, machine_limits
from .measures import MEASURES, Measure, compared, measure, measure_of_plans, measures_for, shown
from .neighbours import Similarity, embedded, similarity
from .next_token import Surprise, perplexity, predicts_next, surprise, windows
from .pace import Generation, Pace, cache_bytes, generation
from .regularised import most_sensitive, regularised_perplexity
from .rooflines import LayerRoofline, Roofline, roofline
from .scores import accuracy
from .sizes import Size, size
from .speed import latency
from .stored_size import LayerStorage, Storage, sparse_bytes, storage
from .trials import Trials

__all__ = [
    "MEASURES",
    "Answers",
    "Changes",
    "Generation",
    "Interval",
    "Latency",
    "LayerRoofline",
    "LayerStorage",
    "Limits",
    "Measure",
    "Outputs",
    "Pace",
    "Question",
    "Ratio",
    "Roofline",
    "Similarity",
    "Size",
    "Storage",
    "Surprise",
    "Trials",
    "accuracy",
    "agreement",
    "cache_bytes",
    "changes",
    "compared",
    "cosine",
    "divergence",
    "embedded",
    "generation",
    "latency",
    "layer_errors",
    "machine_limits",
    "mean_interval",
    "measure",
    "measure_of_plans",
    "measures_for",
    "most_sensitive",
    "multiple_choice",
    "perplexity",
    "perplexity_ratio",
    "predicts_next",
    "regularised_perplexity",
    "relative_error",
    "roofline",
    "shown",
    "similarity",
    "size",
    "sparse_bytes",
    "storage",
    "surprise",
    "windows",
]
