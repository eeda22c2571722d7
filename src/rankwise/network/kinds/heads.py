"""Heads of attention: the layer that computes their values and the layer that reads what comes of them, as one site.

Found by asking the network. Attention gives averages of values, head by head, so

1. values that are the same at all positions reach the reader as they are: which of its inputs is which row of the
   feeder is read off in a few runs with such values;
2. values that are the same number in all rows, but another at each position, reach it alike where inputs belong to the
   same head, and differ between heads: so the size of heads is read off;
3. what is done to the values of a head (here: some left out, the others exchanged, turned over and scaled) is the same
   as when it is done to what comes of them. This is what the site assumes, and it is checked as a whole.

So any class will do, whatever is fused with the values and however many query heads share them. A rotation or a norm of
the values, gates between heads, or weights that do not add up to one, will not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ...layers.kinds import Role
from ..forward import Forward
from ..site import Heads as Layout
from ..site import Site
from .base import stored_weight
from .fed import Fed, feeder
from .probing import Hook, is_free, run, same

# A row is written as so many digits, each a value that half precision tells from the others.
DIGITS, BASE = 4, 16
# The layers before a reader that may compute its values.
BEFORE = 6
# Inputs of one head agree to this share of the largest; those of heads with other weights differ far more.
ALIKE = 0.02
SEED = 0


@dataclass(frozen=True)
class _Found:
    """The layer that computes values, the one that reads the heads, and where the values are."""

    feeders: tuple[str, ...]
    reader: str
    layout: Layout


class Heads(Fed[_Found]):
    """`W_o concat_j(P_j V_j)` with the attention `P_j` of head `j` and its values `V_j = W_v,j x`.

    The site is described as its last layer, the output projection, whose inputs are what comes of the heads.
    """

    name = "heads"
    role = Role.HEADS

    def candidates(self, forward: Forward) -> Iterator[_Found]:
        names = [name for name in forward.order if is_free(forward, name)]
        rows = _rows_read(forward, names)
        if not rows:
            return
        inputs = _equal_values(forward, names, rows)
        taken = set[str]()
        for reader, (source, row_D) in rows.items():
            size = _head_size(inputs.get(reader))
            layout = None if size is None else _layout(row_D, size)
            # Counts of a site are by the rows of its reader: values of other positions are left to single layers.
            calls = forward.record.calls
            alike = calls[source][0].rows == calls[reader][0].rows
            if layout is not None and alike and taken.isdisjoint((source, reader)):
                taken |= {source, reader}
                yield _Found((source,), reader, layout)

    def works(self, forward: Forward, found: Sequence[_Found]) -> bool:
        return _works(forward, found)

    def place(self, site: Site) -> str | None:
        """Values get other axes, and those that the attention has computed by then would be in the old ones."""
        return None

    def fields(self, forward: Forward, found: _Found) -> dict[str, Any]:
        units = stored_weight(forward.model.get_submodule(found.reader)).shape[1]
        layer, shared = forward.model.get_submodule(found.feeders[0]), found.layout.shared
        others = len(stored_weight(layer)) - units // shared
        return {"feeders": (feeder(layer, 1, shared, others),), "heads": found.layout}


def _rows_read(forward: Forward, names: Sequence[str]) -> dict[str, tuple[str, Tensor]]:
    """Layers -> a layer before, and for each of their inputs the row of that layer that it is an average of."""
    generator = torch.Generator().manual_seed(SEED)
    codes, seen = dict[str, Tensor](), {name: list[Tensor]() for name in names}
    for name in names:
        rows = len(stored_weight(forward.model.get_submodule(name)))
        if rows <= BASE**DIGITS:
            codes[name] = torch.randperm(BASE**DIGITS, generator=generator)[:rows]
    for digit in range(DIGITS):
        hooks = list[Hook]()
        for name in names:
            layer = forward.model.get_submodule(name)
            hooks.append(
                (layer.register_forward_pre_hook, lambda layer, args, n=name: seen[n].append(_middle(args[0])))
            )
            if name in codes:
                level_R = (codes[name] // BASE**digit % BASE) * 2 / (BASE - 1) - 1
                hooks.append((layer.register_forward_hook, lambda layer, args, y, v=level_R: v.to(y).expand_as(y)))
        if not _runs(forward, hooks):
            return {}
    found = dict[str, tuple[str, Tensor]]()
    for place, reader in enumerate(names):
        levels_D = [((level.double() + 1) * (BASE - 1) / 2) for level in seen[reader]]
        if len(levels_D) != DIGITS or not all(bool((level - level.round()).abs().max() < 0.25) for level in levels_D):
            continue
        code_D = torch.stack([level.round() * BASE**digit for digit, level in enumerate(levels_D)]).sum(0).long()
        for source in reversed(names[max(0, place - BEFORE) : place]):
            row_D = _rows_of(code_D, codes.get(source))
            if row_D is not None:
                found[reader] = source, row_D
                break
    return found


def _rows_of(code_D: Tensor, codes_R: Tensor | None) -> Tensor | None:
    """The place of each code among those of a layer, None if one is missing."""
    if codes_R is None or int(code_D.min()) < 0 or int(code_D.max()) >= BASE**DIGITS:
        return None
    places = torch.full((BASE**DIGITS,), -1).index_copy(0, codes_R, torch.arange(len(codes_R)))
    row_D = places[code_D.cpu()]
    return row_D if int(row_D.min()) >= 0 else None


def _middle(x: Tensor) -> Tensor:
    """The median of each input over the rows: rows that a mask leaves without any position may hold anything."""
    return x.detach().reshape(-1, x.shape[-1]).nan_to_num().float().median(0).values


def _equal_values(forward: Forward, names: Sequence[str], rows: dict[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
    """What readers get where all values of a position are one random number, and all other layers give random ones.

    So attention is spread at random, different in each head, whatever the example. Inputs that are not mixed over
    positions are left out.
    """
    generator = torch.Generator().manual_seed(SEED)
    value_rows = {source: row_D.unique() for source, row_D in rows.values()}
    given, inputs, hooks = dict[str, Tensor](), dict[str, Tensor](), list[Hook]()

    def replaced(name: str, y: Tensor) -> Tensor:
        made = torch.randn(y.shape, generator=generator).to(y)
        if name in value_rows:
            given[name] = torch.randn((*y.shape[:-1], 1), generator=generator).to(y)
            made[..., value_rows[name].to(y.device)] = given[name]
        return made

    def note(reader: str, x: Tensor) -> None:
        values = given.get(rows[reader][0])
        unmixed = values is not None and values.shape[:-1] == x.shape[:-1] and bool(_alike(x, values))
        if not unmixed:
            inputs[reader] = x.detach()

    for name in names:
        layer = forward.model.get_submodule(name)
        if name in rows:
            hooks.append((layer.register_forward_pre_hook, lambda layer, args, n=name: note(n, args[0])))
        hooks.append((layer.register_forward_hook, lambda layer, args, y, n=name: replaced(n, y)))
    return inputs if _runs(forward, hooks) else {}


def _alike(one: Tensor, other: Tensor) -> bool:
    one, other = one.nan_to_num().double(), other.nan_to_num().double()
    return bool((one - other).abs().max() <= ALIKE * one.abs().max())


def _head_size(x: Tensor | None) -> int | None:
    """The size of the heads: of parts of the inputs that are alike; None if these are not of one size."""
    if x is None or x.dim() < 2 or not x.numel():
        return None
    x_ND = x.nan_to_num().reshape(-1, x.shape[-1]).double()
    apart = (x_ND[:, 1:] - x_ND[:, :-1]).abs().amax(0) > ALIKE * x_ND.abs().max()
    ends = [0, *(apart.nonzero().flatten() + 1).tolist(), x_ND.shape[1]]
    sizes = {end - start for start, end in pairwise(ends)}
    return sizes.pop() if len(sizes) == 1 and min(sizes) > 1 else None


def _layout(row_D: Tensor, size: int) -> Layout | None:
    """Where the heads find their values; None if they are not side by side, or shared in another order."""
    row_JH = row_D.reshape(-1, size)
    firsts = row_JH[:, 0].tolist()
    if not torch.equal(row_JH, row_JH[:, :1] + torch.arange(size)):
        return None
    shared = firsts.count(firsts[0])
    starts = firsts[::shared]
    stride = starts[1] - starts[0] if len(starts) > 1 else size
    wanted = [starts[0] + stride * (head // shared) for head in range(len(firsts))]
    fits = stride >= size and firsts == wanted
    return Layout(size=size, shared=shared, first=starts[0], stride=stride) if fits else None


def value_rows(layout: Layout, units: int) -> Tensor:
    """Rows of the feeder that hold values, key/value heads x size, for a reader of so many inputs."""
    starts = layout.first + layout.stride * torch.arange(units // layout.size // layout.shared)
    return starts[:, None] + torch.arange(layout.size)


def _works(forward: Forward, found: Sequence[_Found]) -> bool:
    """Whether it is the same to change the values of heads as to change what comes of them.

    All changes are exact in any precision: values are left out, exchanged, turned over or scaled by powers of two.
    """
    generator, after, before = torch.Generator().manual_seed(SEED), list[Hook](), list[Hook]()
    wanted, given = list[Tensor](), list[Tensor]()
    for each in found:
        source, reader = map(forward.model.get_submodule, (each.feeders[0], each.reader))
        weight = stored_weight(reader)
        rows_GH = value_rows(each.layout, weight.shape[1]).to(weight.device)
        order_GH = torch.rand(rows_GH.shape, generator=generator).argsort(1).to(weight.device)
        scale_GH = 2.0 ** torch.randint(-2, 2, rows_GH.shape, generator=generator).to(weight.device)
        scale_GH = scale_GH * (order_GH % 2) * (1 - order_GH % 4)  # of four values two are left out, one is turned over
        from_GH, shared = rows_GH.gather(1, order_GH), each.layout.shared

        def on_read(
            layer: nn.Module, args: Any, order: Tensor = order_GH, scale: Tensor = scale_GH, shared: int = shared
        ) -> tuple[Tensor]:
            x = args[0].unflatten(-1, (len(order), shared, -1))
            x = x.gather(-1, order[:, None].expand(x.shape)) * scale[:, None].to(x)
            wanted.append(x.flatten(-3))
            return (wanted[-1],)

        def on_made(
            layer: nn.Module,
            args: Any,
            y: Tensor,
            to: Tensor = rows_GH,
            source: Tensor = from_GH,
            scale: Tensor = scale_GH,
        ) -> Tensor:
            return y.index_copy(-1, to.flatten(), y[..., source.flatten()] * scale.flatten().to(y))

        after.append((reader.register_forward_pre_hook, on_read))
        before.append((source.register_forward_hook, on_made))
        before.append((reader.register_forward_pre_hook, lambda layer, args: given.append(args[0])))
    return same(forward, after, before, wanted, given)


def _runs(forward: Forward, hooks: Sequence[Hook]) -> bool:
    """Whether the network runs with the hooks."""
    try:
        run(forward, hooks)
    except Exception:  # a foreign forward that such values do not suit: nothing is found
        return False
    return True
