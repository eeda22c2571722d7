"""Networks that are factorised before they are trained: built from scratch, balanced, switched after a warm-up."""

from __future__ import annotations

from .building import build, build_network, initialise_
from .refactorising import Refactorised, refactorise_
from .warm_up import WarmUp

__all__ = ["Refactorised", "WarmUp", "build", "build_network", "initialise_", "refactorise_"]
