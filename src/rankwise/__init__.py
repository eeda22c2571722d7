"""Rankwise makes trained PyTorch networks smaller and faster by low-rank factorisation.

small, report = rankwise.compress(model, batches, keep={"macs": 0.5})
"""

from __future__ import annotations

from . import evaluate, export, kernels, training
from .artifact import load, save
from .batches import Batches, inputs_only
from .choose import choose
from .compress import CompressReport, compress
from .factorise import factorise, factorise_
from .find import find
from .formats import FORMATS, LowRank
from .pareto import pareto
from .plan import Plan, PlanRow
from .planner import Planner
from .profile import profile
from .ranks import RULES, Rule, get_rule
from .sites import Site, Sites
from .statistics import Moments, Statistics, collect
from .training import HealReport, heal
from .transfer import choose_shrinkage

__version__ = "0.1.0"

__all__ = [
    "FORMATS",
    "RULES",
    "Batches",
    "CompressReport",
    "HealReport",
    "LowRank",
    "Moments",
    "Plan",
    "PlanRow",
    "Planner",
    "Rule",
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
    "get_rule",
    "heal",
    "inputs_only",
    "kernels",
    "load",
    "pareto",
    "profile",
    "save",
    "training",
]
