"""Rankwise makes trained PyTorch networks smaller and faster by low-rank factorisation.

small, report = rankwise.compress(model, batches, keep={"macs": 0.5})
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from .verify import Verified, verify

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
    "verify",
]

# Module -> the public names that it defines.
_HOMES = {
    "artifact": ("load", "save"),
    "batches": ("Batches", "inputs_only"),
    "choose": ("choose",),
    "compress": ("CompressReport", "compress"),
    "factorise": ("factorise", "factorise_"),
    "find": ("find",),
    "formats": ("FORMATS", "LowRank"),
    "pareto": ("pareto",),
    "plan": ("Plan", "PlanRow"),
    "planner": ("Planner",),
    "profile": ("profile",),
    "ranks": ("RULES", "Rule", "get_rule"),
    "sites": ("Site", "Sites"),
    "statistics": ("Moments", "Statistics", "collect"),
    "training": ("HealReport", "heal"),
    "transfer": ("choose_shrinkage",),
    "verify": ("Verified", "verify"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """The package: it imports public names when they are asked for, so that the command line answers before PyTorch."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__ and name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name not in _HOME_OF:
            return importlib.import_module(f"{__name__}.{name}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing `rankwise.choose` would put the module of that name in the place of the function.
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
