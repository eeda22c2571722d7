"""Rankwise makes trained PyTorch networks smaller and faster by low-rank factorisation.

small, report = rankwise.compress(model, batches, keep={"macs": 0.5})
"""

from __future__ import annotations

from . import evaluate, export
from .artifact import load, save
from .batches import Batches, inputs_only
from .choose import choose
from .compress import CompressReport, compress
from .factorise import factorise, factorise_
from .formats import FORMATS, LowRank
from .plan import Plan, PlanRow
from .profile import profile
from .sites import Site, Sites, find
from .statistics import Moments, Statistics, collect
from .transfer import choose_shrinkage

__version__ = "0.1.0"

__all__ = [
    "FORMATS",
    "Batches",
    "CompressReport",
    "LowRank",
    "Moments",
    "Plan",
    "PlanRow",
    "Site",
    "Sites",
    "Statistics",
    "choose",
    "choose_shrinkage",
    "collect",
    "compress",
    "evaluate",
    "export",
    "factorise",
    "factorise_",
    "find",
    "inputs_only",
    "load",
    "profile",
    "save",
]
