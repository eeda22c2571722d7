"""Linear layers that read the same input, fitted as one: the first factor is shared, the last is cut between them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...layers.kinds import is_convolution, site_kind
from ..forward import Forward
from ..site import Role, Site
from ..weights import WeightSource
from .base import Reads, SiteKind, stored_weight


class Joint(SiteKind):
    """Slots whose outputs are concatenated: `W = [W_1; W_2; ...]`, `b = [b_1; b_2; ...]`.

    A subclass says in `joined` which layers belong together. Layers that share a weight with others, differ in inputs
    or type, or did not read the same tensors are left to the other kinds.
    """

    role = Role.JOINT

    @abstractmethod
    def joined(self, forward: Forward) -> Iterator[tuple[str, ...]]:
        """Names of the layers of each site, in the order of their outputs."""

    def find(self, forward: Forward) -> Iterator[Site]:
        for names in self.joined(forward):
            groups = [group for name in names if (group := forward.group_of(name)) is not None]
            if len(groups) < len(names) or len(groups) < 2 or not self._alike(forward, names, groups):
                continue
            layers = [forward.model.get_submodule(name) for name in names]
            shapes = [stored_weight(layer).shape for layer in layers]
            bare = [getattr(layer, "bias", None) is None for layer in layers]
            yield forward.site(
                self,
                groups,
                layers[0],
                slots=tuple((name,) for name in names),
                weight_shape=(sum(rows for rows, _ in shapes), shapes[0][1]),
                has_bias=not all(bare),
                calls=forward.calls(layers[:1]),
            )

    def reads(self, model: nn.Module, site: Site) -> dict[nn.Module, Reads]:
        return {model.get_submodule(site.slots[0][0]): Reads.ROWS}

    def outputs(self, model: nn.Module, site: Site) -> dict[nn.Module, int | None]:
        return {model.get_submodule(names[0]): part for part, names in enumerate(site.slots)}

    def weight(self, source: WeightSource, site: Site) -> Tensor:
        return torch.cat([stored_weight(source.get_submodule(names[0])) for names in site.slots])

    def bias(self, source: WeightSource, site: Site) -> Tensor | None:
        layers = [source.get_submodule(names[0]) for names in site.slots]
        biases = [getattr(layer, "bias", None) for layer in layers]
        if all(bias is None for bias in biases):
            return None
        none = [stored_weight(layer)[:, 0].detach() * 0 for layer in layers]
        return torch.cat([zeros if bias is None else bias for bias, zeros in zip(biases, none, strict=True)])

    def _alike(self, forward: Forward, names: tuple[str, ...], groups: list[tuple[nn.Module, ...]]) -> bool:
        record, layers = forward.record, [group[0] for group in groups]
        kind, weight = site_kind(layers[0]), stored_weight(layers[0])
        return (
            all(len(group) == 1 for group in groups)
            and not is_convolution(kind)
            and all(site_kind(layer) == kind and kind != "embedding" for layer in layers)
            and all(stored_weight(layer).shape[1:] == weight.shape[1:] for layer in layers)
            and len({(layer.weight.dtype, layer.weight.device) for layer in layers}) == 1
            and all(record.read.get(name) == record.read.get(names[0]) for name in names)
        )
