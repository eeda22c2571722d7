"""Hidden units between layers: the layers that compute them and the layer that reads them, as one site.

Found by structure, and checked in the network itself: units that are left out before the first layer's output reaches
anything must be the same as zeros where the last layer reads them. So any activation and any gate between the layers
will do, and any class; a normalisation over the units, heads of attention, or a second reader will not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...layers.kinds import Role
from ..forward import Forward
from .base import stored_weight
from .fed import Fed, feeder
from .probing import Hook, is_free, same

# The share of the units that is left out in the check.
LEFT = 0.5
SEED = 0


@dataclass(frozen=True)
class _Found:
    """Names of the layers that compute hidden units, and of the one that reads them."""

    feeders: tuple[str, ...]
    reader: str


class Hidden(Fed[_Found]):
    """The MLP of a transformer: `W act(W_1 x)`, or `W (act(W_g x) * W_u x)`, the two apart or in one layer.

    The site is described as its last layer, whose inputs are the hidden units.
    """

    name = "hidden"
    role = Role.HIDDEN

    def candidates(self, forward: Forward) -> Iterator[_Found]:
        return _candidates(forward)

    def works(self, forward: Forward, found: Sequence[_Found]) -> bool:
        return _works(forward, found)

    def fields(self, forward: Forward, found: _Found) -> dict[str, Any]:
        units = stored_weight(forward.model.get_submodule(found.reader)).shape[1]
        layers = map(forward.model.get_submodule, found.feeders)
        return {"feeders": tuple(feeder(layer, len(stored_weight(layer)) // units) for layer in layers)}


def _candidates(forward: Forward) -> Iterator[_Found]:
    """Layers called one after the other whose sizes fit, each at most once; the last one gives back the width."""
    names = [name for name in forward.order if is_free(forward, name)]
    place = 0
    while place < len(names):
        found = next(filter(None, (_fitting(forward, names[place : place + size]) for size in (3, 2))), None)
        if found is None:
            place += 1
            continue
        yield found
        place += len(found.feeders) + 1


def _fitting(forward: Forward, names: Sequence[str]) -> _Found | None:
    """The layers as hidden units of an MLP, None if sizes or inputs do not fit."""
    if len(names) < 2:
        return None
    *feeders, reader = names
    shapes = [stored_weight(forward.model.get_submodule(name)).shape for name in names]
    (outputs, units), inputs = shapes[-1], {shape[1] for shape in shapes[:-1]}
    rows = [shape[0] for shape in shapes[:-1]]
    read = [forward.record.read.get(name) for name in feeders]
    wanted = ([units, units],) if len(feeders) == 2 else ([units], [2 * units])
    fits = rows in wanted and inputs == {outputs} and all(each == read[0] for each in read)
    # A layer of twice the units is a gate whatever the width: experts have few units each.
    return _Found(tuple(feeders), reader) if fits and (outputs < units or rows == [2 * units]) else None


def _works(forward: Forward, found: Sequence[_Found]) -> bool:
    """Whether the network gives the same with units left out as with zeros where they are read."""
    generator, zeroed, narrow = torch.Generator().manual_seed(SEED), list[Hook](), list[Hook]()
    wanted, given = list[Tensor](), list[Tensor]()  # the kept units, as they reach the layers that read them
    for each in found:
        reader = forward.model.get_submodule(each.reader)
        units = stored_weight(reader).shape[1]
        kept = torch.randperm(units, generator=generator)[: max(1, int(LEFT * units))].sort().values
        kept = kept.to(stored_weight(reader).device)

        def zero(layer: nn.Module, args: Any, kept: Tensor = kept) -> tuple[Tensor]:
            wanted.append(args[0][..., kept])
            return (torch.zeros_like(args[0]).index_copy(-1, kept, wanted[-1]),)

        def spread(layer: nn.Module, args: Any, kept: Tensor = kept, units: int = units) -> tuple[Tensor]:
            given.append(args[0])
            return (args[0].new_zeros(*args[0].shape[:-1], units).index_copy(-1, kept, args[0]),)

        zeroed.append((reader.register_forward_pre_hook, zero))
        narrow.append((reader.register_forward_pre_hook, spread))
        for layer in map(forward.model.get_submodule, each.feeders):
            places = torch.cat([kept + part for part in range(0, len(stored_weight(layer)), units)])
            narrow.append((layer.register_forward_hook, lambda layer, args, y, k=places: y[..., k]))
    return same(forward, zeroed, narrow, wanted, given)
