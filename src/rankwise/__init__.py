"""Rankwise makes trained PyTorch networks smaller and faster by low-rank factorisation.

small, report = rankwise.compress(model, batches, keep={"macs": 0.5})
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ._moved import MOVED, Moved

if TYPE_CHECKING:
    from . import evaluate, export, kernels, training
    from .artifact import load, save
    from .factorisation import factorise, factorise_
    from .factorisation.refitting import refit
    from .factorisation.shrinkage import choose_shrinkage
    from .formats import FORMATS
    from .layers.low_rank import LowRank
    from .network.find import find
    from .network.site import Site
    from .network.sites import Sites
    from .plan import Plan, PlanRow
    from .planning.choose import choose
    from .planning.named import method_set
    from .planning.pareto import pareto
    from .planning.planner import Planner
    from .planning.profile import profile
    from .preset import build
    from .ranks import RULES, Rule, get_rule
    from .running.batches import Batches, inputs_only
    from .session import CompressReport, compress
    from .statistics import Moments, Statistics, collect
    from .surgery.unfusing import unfused
    from .training import HealReport, heal
    from .verification import Verified, verify

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
    "Verified",
    "build",
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
    "method_set",
    "pareto",
    "profile",
    "refit",
    "save",
    "training",
    "unfused",
    "verify",
]

# Module -> the public names that it defines.
_HOMES = {
    "artifact": ("load", "save"),
    "factorisation": ("factorise", "factorise_"),
    "factorisation.refitting": ("refit",),
    "factorisation.shrinkage": ("choose_shrinkage",),
    "formats": ("FORMATS",),
    "layers.low_rank": ("LowRank",),
    "network.find": ("find",),
    "network.site": ("Site",),
    "network.sites": ("Sites",),
    "plan": ("Plan", "PlanRow"),
    "planning.choose": ("choose",),
    "planning.named": ("method_set",),
    "planning.pareto": ("pareto",),
    "planning.planner": ("Planner",),
    "planning.profile": ("profile",),
    "preset": ("build",),
    "ranks": ("RULES", "Rule", "get_rule"),
    "running.batches": ("Batches", "inputs_only"),
    "session": ("CompressReport", "compress"),
    "statistics": ("Moments", "Statistics", "collect"),
    "surgery.unfusing": ("unfused",),
    "training": ("HealReport", "heal"),
    "verification": ("Verified", "verify"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """The package: it imports public names when they are asked for, so that the command line answers before PyTorch."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__ and name not in _HOMES and name not in MOVED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name not in _HOME_OF:
            return importlib.import_module(f"{__name__}.{name}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # `import rankwise.choose`, an earlier path, would put that module in the place of the function.
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
sys.meta_path.append(Moved())
