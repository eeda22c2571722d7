"""Low rank while training, and training afterwards: objects that ordinary loops take in, and a loop over them."""

from __future__ import annotations

from .augment import augmentation
from .balance import balance_
from .blocks import BlockReconstruction, find_blocks
from .distil import Distillation
from .guard import Guard
from .heal import HealReport, heal
from .loop import Loop
from .modes import trainable
from .options import Look, LoopOptions, LoopReport
from .rank_search import RankSearch
from .samples import Samples
from .schedule import Cosine

__all__ = [
    "BlockReconstruction",
    "Cosine",
    "Distillation",
    "Guard",
    "HealReport",
    "Look",
    "Loop",
    "LoopOptions",
    "LoopReport",
    "RankSearch",
    "Samples",
    "augmentation",
    "balance_",
    "find_blocks",
    "heal",
    "trainable",
]
