"""Module paths of earlier versions: `from rankwise.sites import Site` goes on to work."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# Where modules were before they were put together by concept -> where they are.
MOVED = {
    "batches": "running.batches",
    "calling": "running.calling",
    "choose": "planning.choose",
    "compress": "session",
    "factorise": "factorisation",
    "find": "network.find",
    "folding": "surgery.folding",
    "kinds": "layers.kinds",
    "outputs": "running.outputs",
    "pareto": "planning.pareto",
    "planner": "planning.planner",
    "profile": "planning.profile",
    "sites": "network.sites",
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
