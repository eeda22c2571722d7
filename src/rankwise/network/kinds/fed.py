"""A layer together with those that compute what it reads, as one site."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from ..forward import Forward, Joined
from ..site import KINDS, Feeder, Site
from ..weights import WeightSource
from .base import Reads, SiteKind, stored_weight


class Found(Protocol):
    """Names of the layers that compute what another reads, and of that one."""

    @property
    def feeders(self) -> tuple[str, ...]:
        """The layers that compute it."""

    @property
    def reader(self) -> str:
        """The layer that reads it."""


F = TypeVar("F", bound=Found)


def check_joined(joint: Joined) -> None:
    """Raise a ValueError for a name that no kind of joint sites has, with those that there are."""
    known = [kind.name for kind in KINDS.values() if isinstance(kind, Fed)]
    unknown = set() if isinstance(joint, bool) else {joint} if isinstance(joint, str) else set(joint) - set(known)
    if unknown:
        raise ValueError(f"joint: {sorted(unknown)[0]!r} must be True, False or a list of {', '.join(known)}")


class Fed(SiteKind, Generic[F]):
    """A site that is described as its last layer, the reader; only found if sites are asked for jointly."""

    def find(self, forward: Forward) -> Iterator[Site]:
        if not forward.joins(self.name):
            return
        found = list(self.candidates(forward))
        if found and not self.works(forward, found):
            found = [each for each in found if self.works(forward, [each])]
        for each in found:
            names = (*each.feeders, each.reader)
            reader = forward.model.get_submodule(each.reader)
            yield forward.site(
                self,
                [group for name in names if (group := forward.group_of(name)) is not None],
                reader,
                slots=tuple((name,) for name in names),
                calls=forward.calls([reader]),
                **self.fields(forward, each),
            )

    @abstractmethod
    def candidates(self, forward: Forward) -> Iterator[F]:
        """Layers whose structure fits, each at most once."""

    @abstractmethod
    def works(self, forward: Forward, found: Sequence[F]) -> bool:
        """Whether the network does with these layers what the site assumes."""

    @abstractmethod
    def fields(self, forward: Forward, found: F) -> dict[str, Any]:
        """Fields of the site that its last layer does not show, `feeders` among them."""

    def reads(self, model: nn.Module, site: Site) -> dict[nn.Module, Reads]:
        return {_reader(model, site): Reads.ROWS}

    def outputs(self, model: nn.Module, site: Site) -> dict[nn.Module, int | None]:
        return {_reader(model, site): 0}

    def place(self, site: Site) -> str | None:
        return site.slots[-1][0]

    def weight(self, source: WeightSource, site: Site) -> Tensor:
        return stored_weight(_reader(source, site))

    def bias(self, source: WeightSource, site: Site) -> Tensor | None:
        bias: Tensor | None = getattr(_reader(source, site), "bias", None)
        return bias


def feeder(layer: nn.Module, rows: int, shared: int = 1, others: int = 0) -> Feeder:
    """A layer as a feeder; `rows`, `shared` and `others` as there."""
    inputs, has_bias = stored_weight(layer).shape[1], getattr(layer, "bias", None) is not None
    return Feeder(rows=rows, inputs=inputs, bias=has_bias, shared=shared, others=others)


def _reader(source: WeightSource, site: Site) -> Any:
    return source.get_submodule(site.slots[-1][0])
