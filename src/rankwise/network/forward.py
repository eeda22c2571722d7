"""What one forward shows to the kinds of sites: which layers were called, share weights, or cannot be replaced."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..layers.kinds import output_first, site_kind
from .counting import Recorder
from .site import Call, Kind, Site
from .ties import Ties, geometry

Group = tuple[nn.Module, ...]
# Whether layers that belong together are one site; or the names of the kinds of which they are.
Joined = bool | Collection[str]


class Forward:
    """One forward of the example input.

    Args:
        fused: id of a layer -> what passes its weight to a fused kernel, in words.
        again: runs the network on the example once more.
        joint: which kinds of layers that belong together are one site; True for all of them.

    Attributes:
        ties: which layers share weights.
        order: name of a layer -> its place among the first calls.
        unfit: id of a layer -> why it cannot be replaced.
    """

    def __init__(
        self,
        model: nn.Module,
        record: Recorder,
        fused: Mapping[int, str],
        again: Callable[[], Any] = lambda: None,
        joint: Joined = False,
    ) -> None:
        self.model, self.record, self.again, self.joint = model, record, again, joint
        self.ties = Ties(model)
        self.order = {name: place for place, name in enumerate(dict.fromkeys([*record.calls, *record.direct]))}
        self.unfit = self._unfit(fused)
        self._free = {id(group[0]): tuple(group) for group in self.ties.groups if self.called(group)}

    def joins(self, kind: str) -> bool:
        """Whether layers are joined in sites of a kind."""
        return self.joint if isinstance(self.joint, bool) else kind in self.joint

    def groups(self) -> Iterator[Group]:
        """The called layers that belong to no site yet, grouped by shared weight."""
        yield from list(self._free.values())

    def group_of(self, name: str) -> Group | None:
        """The group of a layer, None if it belongs to a site already."""
        layer = self.model.get_submodule(name)
        return next((group for group in self._free.values() if any(each is layer for each in group)), None)

    def name(self, layer: nn.Module) -> str:
        """The first qualified name of a layer."""
        return self.ties.names[id(layer)][0]

    def called(self, layers: Sequence[nn.Module]) -> list[str]:
        """Names of the layers that were called, in that order."""
        return sorted((name for name in map(self.name, layers) if name in self.order), key=self.order.__getitem__)

    def calls(self, layers: Sequence[nn.Module]) -> tuple[Call, ...]:
        """All calls of some layers."""
        return tuple(call for layer in layers for call in self.record.calls.get(self.name(layer), ()))

    def site(self, kind: Kind, groups: Sequence[Group], described: nn.Module, **further: Any) -> Site:
        """Make a site of some groups, which belong to it from now on.

        Args:
            described: the layer that gives the site its shape, bias and type.
            further: fields of the site that differ from that layer's.
        """
        layers = [layer for group in groups for layer in group]
        name = self.called(layers)[0]
        first = self.model.get_submodule(name)
        aliases = [alias for layer in (first, *layers) for alias in self.ties.names[id(layer)] if alias != name]
        for group in groups:
            del self._free[id(group[0])]
        firsts = [self.model.get_submodule(self.called(group)[0]) for group in groups]
        reasons = (self.ties.why_dense(each, group, self.unfit) for each, group in zip(firsts, groups, strict=True))
        facts = {
            "calls": self.calls(layers),
            "dense_because": next(filter(None, reasons), None),
            **_described(described),
            **further,
        }
        return Site(name=name, aliases=tuple(dict.fromkeys(aliases)), kind=kind.name, **facts)

    def _unfit(self, fused: Mapping[int, str]) -> dict[int, str]:
        record, at = self.record, self.model.get_submodule
        users = {**fused, **{id(at(name)): owner for name, owner in record.direct.items()}}
        unfit = {layer: f"its weight is used directly by {owner}" for layer, owner in users.items()}
        for name in record.sized:
            unfit[id(at(name))] = "it is called with an output_size; give it an output_padding instead"
        for name, what in record.unusual.items():
            unfit[id(at(name))] = f"it is called with {what}"
        for name in self.order:
            if (reason := _no_real_numbers(at(name).weight)) is not None:
                unfit[id(at(name))] = reason
        return unfit


def _no_real_numbers(weight: Any) -> str | None:
    """Why a weight cannot have factors of its own dtype, in words."""
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.is_complex():
        return f"its weight is {dtype}, and factors are real numbers"
    if not weight.is_floating_point():
        return f"its weight is {dtype}, integers; factorise the floating-point model and quantise the result"
    return None


def _described(layer: Any) -> dict[str, Any]:
    weight, bias = layer.weight, getattr(layer, "bias", None)
    extra = 0
    if is_parametrized(layer):
        extra = sum(p.numel() for p in layer.parameters()) - sum(t.numel() for t in (weight, bias) if t is not None)
    return {
        "weight_shape": tuple(output_first(site_kind(layer), weight, getattr(layer, "groups", 1)).shape),
        "has_bias": bias is not None,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "extra_params": extra,
        **geometry(layer),
    }
