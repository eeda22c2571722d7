"""Tables whose rows are looked up: linear layers of one-hot inputs."""

from __future__ import annotations

from torch import nn

from ..site import Role, Site
from .base import Reads, layers_of
from .layer import Layer


class Embedding(Layer):
    """An embedding, or several with one weight."""

    name = "embedding"
    role = Role.TABLE
    unless_named = "embedding: stays dense"

    def __init__(self) -> None:
        super().__init__(self.name)

    def reads(self, model: nn.Module, site: Site) -> dict[nn.Module, Reads]:
        return dict.fromkeys(layers_of(model, site), Reads.INDICES)
