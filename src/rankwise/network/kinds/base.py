"""The contract of a kind of site: how its sites are found in a forward, and where their weights and rows are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import Enum
from typing import Any

from torch import Tensor, nn

from ...layers.kinds import output_first, site_kind
from ..forward import Forward
from ..site import KINDS, Kind, Site
from ..weights import WeightSource


class Reads(Enum):
    """How a layer of a site reads its input."""

    ROWS = "rows"  # multiplied with the weight
    INDICES = "indices"  # of the rows of a table


class SiteKind(Kind, ABC):
    """A kind of site, and all that is special about it."""

    # Why sites of the kind stay dense unless a pattern other than "*" includes them; None where they do not.
    unless_named: str | None = None

    @abstractmethod
    def find(self, forward: Forward) -> Iterator[Site]:
        """The sites of this kind among the layers that belong to none yet."""

    @abstractmethod
    def reads(self, model: nn.Module, site: Site) -> dict[nn.Module, Reads]:
        """The layers that read the site's inputs; only the first of those that read the same inputs."""

    def outputs(self, model: nn.Module, site: Site) -> dict[nn.Module, int | None]:
        """The layers that give the site's outputs -> the number of the part; None for rows of a table."""
        return dict.fromkeys(layers_of(model, site), 0)

    def place(self, site: Site) -> str | None:
        """Name of the one layer that reads the site's inputs and gives its outputs; None where there are several."""
        return None if site.aliases or not site.multiplies else site.name

    def weight(self, source: WeightSource, site: Site) -> Tensor:
        """The weight, O x I/G [x kernel], in its own dtype; gradients flow through it."""
        return stored_weight(source.get_submodule(site.name))

    def bias(self, source: WeightSource, site: Site) -> Tensor | None:
        """The bias of all outputs, None where no layer has one."""
        layers = [source.get_submodule(name) for name in site.names]
        return next((bias for layer in layers if isinstance(bias := getattr(layer, "bias", None), Tensor)), None)


def stored_weight(layer: Any) -> Tensor:
    """The weight of a dense layer, output first whatever layout it is stored in."""
    return output_first(site_kind(layer), layer.weight, getattr(layer, "groups", 1))


def layers_of(model: nn.Module, site: Site) -> list[nn.Module]:
    """All modules of a site, each once."""
    return list(dict.fromkeys(model.get_submodule(name) for name in site.names))


def register(kind: SiteKind) -> SiteKind:
    """Add a kind; it finds its sites before all kinds registered earlier.

    Raises:
        ValueError: if another kind has its name.
    """
    if kind.name in KINDS:
        raise ValueError(f"there is a kind of site {kind.name!r} already; give this one another name")
    KINDS[kind.name] = kind
    return kind


def kinds() -> list[SiteKind]:
    """All kinds, the last registered first."""
    return [kind for kind in reversed(KINDS.values()) if isinstance(kind, SiteKind)]


def kind_of(site: Site) -> SiteKind:
    """The kind of a site; a ValueError if it is not registered."""
    kind = site.by_kind
    assert isinstance(kind, SiteKind)
    return kind
