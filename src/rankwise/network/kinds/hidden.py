"""Hidden units between layers: the layers that compute them and the layer that reads them, as one site.

Found by structure, and checked in the network itself: units that are left out before the first layer's output reaches
anything must be the same as zeros where the last layer reads them. So any activation and any gate between the layers
will do, and any class; a normalisation over the units, heads of attention, or a second reader will not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...layers.kinds import is_convolution, site_kind
from ...running.calling import tensor_leaves
from ...running.exclusive import own_thread
from ..forward import Forward
from ..site import Feeder, Role, Site
from ..weights import WeightSource
from .base import Reads, SiteKind, stored_weight

# The share of the units that is left out in the check, and how much results may differ, relative to the largest.
LEFT, CLOSE = 0.5, 1e-3
SEED = 0


@dataclass(frozen=True)
class _Found:
    """Names of the layers that compute hidden units, and of the one that reads them."""

    feeders: tuple[str, ...]
    reader: str


class Hidden(SiteKind):
    """The MLP of a transformer: `W act(W_1 x)`, or `W (act(W_g x) * W_u x)`, the two apart or in one layer.

    The site is described as its last layer, whose inputs are the hidden units. It is found only if sites are asked for
    jointly.
    """

    name = "hidden"
    role = Role.HIDDEN

    def find(self, forward: Forward) -> Iterator[Site]:
        if not forward.joint:
            return
        found = list(_candidates(forward))
        if found and not _works(forward, found):
            found = [each for each in found if _works(forward, [each])]
        for each in found:
            layers = [forward.model.get_submodule(name) for name in (*each.feeders, each.reader)]
            groups = [group for name in (*each.feeders, each.reader) if (group := forward.group_of(name)) is not None]
            units = stored_weight(layers[-1]).shape[1]
            yield forward.site(
                self,
                groups,
                layers[-1],
                slots=tuple((name,) for name in (*each.feeders, each.reader)),
                calls=forward.calls(layers[-1:]),
                feeders=tuple(_feeder(layer, units) for layer in layers[:-1]),
            )

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


def _reader(source: WeightSource, site: Site) -> Any:
    return source.get_submodule(site.slots[-1][0])


def _feeder(layer: nn.Module, units: int) -> Feeder:
    outputs, inputs = stored_weight(layer).shape
    return Feeder(rows=outputs // units, inputs=inputs, bias=getattr(layer, "bias", None) is not None)


def _candidates(forward: Forward) -> Iterator[_Found]:
    """Layers called one after the other whose sizes fit, each at most once; the last one gives back the width."""
    names = [name for name in forward.order if _is_free(forward, name)]
    place = 0
    while place < len(names):
        found = next(filter(None, (_fitting(forward, names[place : place + size]) for size in (3, 2))), None)
        if found is None:
            place += 1
            continue
        yield found
        place += len(found.feeders) + 1


def _is_free(forward: Forward, name: str) -> bool:
    """A linear layer that is called once, shares its weight with none and can be replaced."""
    layer: Any = forward.model.get_submodule(name)
    group = forward.group_of(name)
    return (
        site_kind(layer) not in (None, "embedding")
        and not is_convolution(site_kind(layer))
        and group is not None
        and len(group) == 1
        and len(forward.record.calls.get(name, ())) == 1
        and id(layer) not in forward.unfit
        and layer.weight.is_floating_point()
    )


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
    """Whether the network gives the same with units left out as with zeros where they are read.

    The units themselves are compared, too: what a block adds to a network may be too little to be seen in its outputs.
    """
    generator, zeroed, narrow = torch.Generator().manual_seed(SEED), list[_Hook](), list[_Hook]()
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
        for feeder in map(forward.model.get_submodule, each.feeders):
            places = torch.cat([kept + part for part in range(0, len(stored_weight(feeder)), units)])
            narrow.append((feeder.register_forward_hook, lambda layer, args, y, k=places: y[..., k]))
    wanted += _run(forward, zeroed)
    try:
        given += _run(forward, narrow)
    except Exception:  # whatever a foreign forward says about other sizes: it does not work
        return False
    return len(wanted) == len(given) and all(map(_close, wanted, given))


# A method that registers a hook, and the hook.
_Hook = tuple[Callable[..., Any], Callable[..., Any]]


def _run(forward: Forward, hooks: Sequence[_Hook]) -> list[Tensor]:
    """The outputs of the network on its example, with hooks."""
    with ExitStack() as stack, torch.no_grad():
        for register, hook in hooks:
            stack.callback(register(own_thread(hook)).remove)
        return tensor_leaves(forward.again())


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    one, other = one.double(), other.double()
    return bool((one - other).abs().max() <= CLOSE * one.abs().max()) if one.numel() else True
