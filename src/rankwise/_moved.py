"""Module paths of earlier versions: `from rankwise.sites import Site` goes on to work."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# Room -> the modules that were at the top of the package before they were put together by concept.
_ROOMS = {
    "factorisation": "check",
    "inputs": "torchvision_shim",
    "layers": "kinds",
    "network": "counting find hub patterns references routes sites standins ties vocabulary",
    "planning": "budgets choose constraints curves pareto planner profile refine target unmet wishes",
    "running": "arguments attributes batches calling copying example exclusive finite guards outputs padding pristine "
    "randomness seen state",
    "surgery": "folding tracing",
}
# Where modules were -> where they are.
MOVED = {
    **{name: f"{room}.{name}" for room, names in _ROOMS.items() for name in names.split()},
    "compress": "session",
    "factorise": "factorisation",
    "formats.lazy_weight": "layers.lazy_weight",
    "formats.low_rank": "layers.low_rank",
    "formats.modules": "layers.modules",
    "formats.nested": "layers.nested",
    "latency.clock": "timing.clock",
    "latency.load": "timing.load",
    "transfer": "factorisation.shrinkage",
    "verify": "verification",
}


class Moved:
    """Finds a module under its earlier path; both paths give the same module.

    A finder and loader without the base classes of `importlib.abc`, which take longer to import than the package.
    """

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See `Loader.create_module`."""
        return None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `MetaPathFinder.find_spec`."""
        package, _, rest = name.partition(".")
        ours = package == __package__ and rest in MOVED
        return ModuleSpec(name, self) if ours else None  # type: ignore[arg-type]  # has what a Loader has

    def exec_module(self, module: ModuleType) -> None:
        """See `Loader.exec_module`."""
        old = module.__name__.partition(".")[2]
        new = f"{__package__}.{MOVED[old]}"
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)
