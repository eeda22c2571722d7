"""Kinds of sites; `register` adds one, whose sites are planned, fitted, stored and loaded like all others."""

from ...layers.kinds import LAYERS
from .base import Reads, SiteKind, kind_of, kinds, register
from .embedding import Embedding
from .fed import check_joined
from .heads import Heads
from .hidden import Hidden
from .joint import Joint
from .layer import Layer
from .tied import TiedEmbedding

for _name in LAYERS:
    register(Embedding() if _name == Embedding.name else Layer(_name))
register(TiedEmbedding())
register(Heads())
register(Hidden())

__all__ = [
    "Embedding",
    "Heads",
    "Hidden",
    "Joint",
    "Layer",
    "Reads",
    "SiteKind",
    "TiedEmbedding",
    "check_joined",
    "kind_of",
    "kinds",
    "register",
]
