"""Low rank in time: the parameters of a training stay near few directions, in which training goes on."""

from __future__ import annotations

from .checkpoints import Checkpoints
from .directions import averaging, dldr
from .in_subspace import InSubspace
from .projected_bfgs import ProjectedBFGS
from .projected_sgd import ProjectedSGD
from .recorder import Recorder
from .space import Subspace

__all__ = [
    "Checkpoints",
    "InSubspace",
    "ProjectedBFGS",
    "ProjectedSGD",
    "Recorder",
    "Subspace",
    "averaging",
    "dldr",
]
