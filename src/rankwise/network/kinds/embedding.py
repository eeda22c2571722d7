"""Tables whose rows are looked up: linear layers of one-hot inputs."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ...layers.kinds import site_kind
from ..forward import Forward
from ..site import Role, Site
from .base import Reads, SiteKind, layers_of


class Embedding(SiteKind):
    """An embedding, or several with one weight."""

    name = "embedding"
    role = Role.TABLE
    unless_named = "embedding: stays dense"

    def find(self, forward: Forward) -> Iterator[Site]:
        for group in forward.groups():
            first = forward.model.get_submodule(forward.called(group)[0])
            if site_kind(first) == self.name:
                yield forward.site(self, [group], first)

    def reads(self, model: nn.Module, site: Site) -> dict[nn.Module, Reads]:
        return dict.fromkeys(layers_of(model, site), Reads.INDICES)
