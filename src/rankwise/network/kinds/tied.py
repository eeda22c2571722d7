"""An embedding and the linear head that shares its weight: one matrix of two uses."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ..forward import Forward
from ..site import Role, Site
from ..ties import is_table, is_tied
from ..weights import WeightSource
from .base import Reads, SiteKind, layers_of


class TiedEmbedding(SiteKind):
    """Described as the head: O x I as the head stores it, with a row for each item of the table."""

    name = "tied_embedding"
    role = Role.TIED
    unless_named = "embedding and head of a language model: stay dense"

    def find(self, forward: Forward) -> Iterator[Site]:
        for group in forward.groups():
            if not is_tied(group):
                continue
            tables = [layer for layer in group if is_table(layer)]
            heads = [layer for layer in group if not is_table(layer)]
            first = forward.model.get_submodule(forward.called(group)[0])
            for use in (tables, heads):
                if not forward.called(use):
                    why = f"its weight is tied to {forward.name(use[0])!r}, which the example input never calls"
                    forward.unfit.setdefault(id(first), why)
            yield forward.site(
                self,
                [group],
                heads[0] if is_table(first) else first,
                calls=forward.calls(heads),
                lookups=sum(call.rows for call in forward.calls(tables)),
            )

    def reads(self, model: nn.Module, site: Site) -> dict[nn.Module, Reads]:
        return {layer: Reads.INDICES if is_table(layer) else Reads.ROWS for layer in layers_of(model, site)}

    def outputs(self, model: nn.Module, site: Site) -> dict[nn.Module, int | None]:
        return {layer: None if is_table(layer) else 0 for layer in layers_of(model, site)}

    def weight(self, source: WeightSource, site: Site) -> Tensor:
        weight = source.get_submodule(site.name).weight  # both of its layers store it as the head's
        assert isinstance(weight, Tensor)
        return weight
