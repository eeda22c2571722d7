"""Kinds of sites; `register` adds one, whose sites are planned, fitted, stored and loaded like all others."""

from ...layers.kinds import LAYERS
from .base import Reads, SiteKind, kind_of, kinds, register
from .embedding import Embedding
from .hidden import Hidden
from .joint import Joint
from .layer import Layer
from .tied import TiedEmbedding

for _name in LAYERS:
    register(Embedding() if _name == Embedding.name else Layer(_name))
register(TiedEmbedding())
register(Hidden())

__all__ = [
    "Embedding",
    "Hidden",
    "Joint",
    "Layer",
    "Reads",
    "SiteKind",
    "TiedEmbedding",
    "kind_of",
    "kinds",
    "register",
]
