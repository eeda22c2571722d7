"""Sites of one layer that multiplies: linear layers and convolutions, or several of them with one weight."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ...layers.kinds import site_kind
from ..forward import Forward
from ..site import Role, Site
from .base import Reads, SiteKind, layers_of


class Layer(SiteKind):
    """Layers of one class of `torch.nn`, or of transformers' Conv1D.

    Args:
        name: of the class, one of `layers.kinds.LAYERS`.
    """

    role = Role.LAYER

    def __init__(self, name: str) -> None:
        self.name = name

    def find(self, forward: Forward) -> Iterator[Site]:
        for group in forward.groups():
            first = forward.model.get_submodule(forward.called(group)[0])
            if site_kind(first) == self.name:
                yield forward.site(self, [group], first)

    def reads(self, model: nn.Module, site: Site) -> dict[nn.Module, Reads]:
        return dict.fromkeys(layers_of(model, site), Reads.ROWS)
