"""Low rank while training, and training afterwards: objects that ordinary loops take in, and a loop over them."""

from __future__ import annotations

from .augment import augmentation
from .balance import balance_
from .blocks import BlockReconstruction, find_blocks
from .constrain import Constrained, constrain_, release_
from .diagonals import merge_diagonals_, scale_diagonals_
from .distil import Distillation
from .expand import expand_, merge_
from .factor_training import TrainReport, train
from .factors import deviation
from .guard import Guard
from .healing import HealReport, heal
from .loop import Loop
from .modes import trainable
from .options import Look, LoopOptions, LoopReport
from .orthogonal import KeptOrthogonal, OrthogonalPenalty, WeightSchedule
from .rank_search import RankSearch
from .ranks_in_turn import RanksInTurn
from .samples import Samples
from .schedule import Cosine
from .technique import Step, Technique
from .truncation import truncate

__all__ = [
    "BlockReconstruction",
    "Constrained",
    "Cosine",
    "Distillation",
    "Guard",
    "HealReport",
    "KeptOrthogonal",
    "Look",
    "Loop",
    "LoopOptions",
    "LoopReport",
    "OrthogonalPenalty",
    "RankSearch",
    "RanksInTurn",
    "Samples",
    "Step",
    "Technique",
    "TrainReport",
    "WeightSchedule",
    "augmentation",
    "balance_",
    "constrain_",
    "deviation",
    "expand_",
    "find_blocks",
    "heal",
    "merge_",
    "merge_diagonals_",
    "release_",
    "scale_diagonals_",
    "train",
    "trainable",
    "truncate",
]
