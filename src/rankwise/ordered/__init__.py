"""Ordered ranks: layers whose first components are smaller layers, trained so, shrunk, and cut anywhere."""

from __future__ import annotations

from .deployment import Deployed, deploy
from .distillation import FlexRank, NestedDistillation
from .extraction import extract, settle_
from .hierarchical_lasso import hierarchical_shrinkage, lasso, lasso_step_
from .layer import Ordered, counts, order_, ordered_layers, using
from .maestro import Maestro
from .norms import SwitchedNorms, recalibrate_
from .profiles import nested_profiles
from .sampler import Sampler
from .shrinking import importance, shrink_
from .strength import search_strength

__all__ = [
    "Deployed",
    "FlexRank",
    "Maestro",
    "NestedDistillation",
    "Ordered",
    "Sampler",
    "SwitchedNorms",
    "counts",
    "deploy",
    "extract",
    "hierarchical_shrinkage",
    "importance",
    "lasso",
    "lasso_step_",
    "nested_profiles",
    "order_",
    "ordered_layers",
    "recalibrate_",
    "search_strength",
    "settle_",
    "shrink_",
    "using",
]
