"""What a kind of site knows: how its sites are found in a forward, and where their numbers are."""

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

    ROWS = "rows"  # they are multiplied with the weight
    INDICES = "indices"  # of the rows of a table


class SiteKind(Kind, ABC):
    """A kind of site, and all that is special about it."""

    # Why a site of the kind stays dense where no pattern but "*" includes it; None where it does not.
    unless_named: str | None = None

    @abstractmethod
    def find(self, forward: Forward) -> Iterator[Site]:
        """The sites of this kind among the layers that belong to none yet."""

    @abstractmethod
    def reads(self, model: nn.Module, site: Site) -> dict[nn.Module, Reads]:
        """The layers whose inputs are those of the site; of layers that read the same ones the first alone."""

    def outputs(self, model: nn.Module, site: Site) -> dict[nn.Module, int | None]:
        """The layers whose outputs are those of the site, with the part that each gives; None for rows of a table."""
        return dict.fromkeys(layers_of(model, site), 0)

    def weight(self, source: WeightSource, site: Site) -> Tensor:
        """The weight, O x I/G [x kernel], in its own type; gradients flow through it."""
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
    """Make a kind known; its sites are looked for before those of the kinds that were known.

    Raises:
        ValueError: for a name that another kind has.
    """
    if kind.name in KINDS:
        raise ValueError(f"there is a kind of site {kind.name!r} already; give this one another name")
    KINDS[kind.name] = kind
    return kind


def kinds() -> list[SiteKind]:
    """All kinds, the last registered first."""
    return [kind for kind in reversed(KINDS.values()) if isinstance(kind, SiteKind)]


def kind_of(site: Site) -> SiteKind:
    """The kind of a site.

    Raises:
        ValueError: for a kind that nobody has registered.
    """
    kind = site.by_kind
    assert isinstance(kind, SiteKind)
    return kind
