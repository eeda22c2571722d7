"""Balance factorised layers: equal norms on both sides of every bond make gradient steps well conditioned.

Letters: O outputs, I inputs, G groups.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..formats import LowRank
from ..formats.weights import read, write
from ..layers.kinds import site_kind
from ..layers.modules import GroupedLinear, TransposedLinear
from ..layers.nested import Bands, Branches
from ..running.exclusive import exclusive

# In a chain of four layers, every sweep at least halves the distance from the optimum.
SWEEPS, CLOSE = 200, 1e-7


class Side(NamedTuple):
    """A layer at one end of a bond, and which channel of the bond each of its channels is."""

    layer: Any
    channels: Tensor


class Bond(NamedTuple):
    """The channels between layers, with the layers that write and that read them."""

    size: int
    writers: list[Side]
    readers: list[Side]


@torch.no_grad()
@exclusive
def balance_(model: nn.Module) -> nn.Module:
    """Scale the channels inside every factorised layer until both sides of each have the same norm.

    `min over s > 0 of sum_l ||W_l||^2`, where channel c of a bond is written by `W_l[c] / s_c` and read by
    `s_c W_(l+1)[:, c]`; at the minimum both norms are equal. The network computes the same function. Bonds behind a
    module that rearranges channels or passes some through are left alone.

    Args:
        model: a factorised network, changed in place and returned.

    Example:
        >>> import rankwise as rw
        >>> net = nn.Sequential(nn.Linear(8, 8))
        >>> small, _ = rw.compress(net, [torch.randn(32, 8)], keep={"params": 0.8})
        >>> first, last = balance_(small)[0]
        >>> torch.allclose(first.weight.norm(dim=1), last.weight.norm(dim=0))
        True
    """
    for chain in model.modules():
        if isinstance(chain, LowRank):
            _balance_chain(chain)
    return model


def bonds(chain: LowRank) -> list[Bond]:
    """The bonds of a chain whose channels may be scaled."""
    found = []
    for before, after in pairwise(chain):
        writers, readers = _writers(before), _readers(after)
        if writers and readers:
            size = sum(len(side.channels) for side in writers)
            assert size == 1 + max(int(side.channels.max()) for side in readers)
            found.append(Bond(size, writers, readers))
    return found


def norms(bond: Bond) -> tuple[Tensor, Tensor]:
    """For each channel of a bond, the norm of the weights that write it and of those that read it."""
    weights = {id(side.layer): read(side.layer).double() for side in (*bond.writers, *bond.readers)}
    return _norms(bond, weights)


def _balance_chain(chain: LowRank) -> None:
    # A bond's scales have a closed form while all others are fixed, so sweep over the bonds until none moves. In
    # float64, written back once: rounding would otherwise add up.
    found = bonds(chain)
    layers = {id(side.layer): side.layer for bond in found for side in (*bond.writers, *bond.readers)}
    weights = {key: read(layer).double() for key, layer in layers.items()}
    biases = {key: layer.bias.double() for key, layer in layers.items() if getattr(layer, "bias", None) is not None}
    changed: set[int] = set()
    for _ in range(SWEEPS):
        furthest = max((_balance_bond(bond, weights, biases, changed) for bond in found), default=0.0)
        if furthest <= CLOSE:
            break
    for key in changed:
        write(layers[key], weights[key])
        if key in biases:
            layers[key].bias.copy_(biases[key])


def _balance_bond(bond: Bond, weights: dict[int, Tensor], biases: dict[int, Tensor], changed: set[int]) -> float:
    """Scale the channels of one bond and return how far they were from balance, as a logarithm."""
    written, is_read = _norms(bond, weights)
    used = (written > 0) & (is_read > 0)
    scale = torch.where(used, (written / is_read).sqrt(), 1.0)
    distance = float(scale.log().abs().max())
    if distance <= CLOSE:
        return distance
    for layer, channels in bond.writers:
        weight = weights[id(layer)]
        weights[id(layer)] = weight / scale[channels].view(-1, *[1] * (weight.dim() - 1))
        if id(layer) in biases:
            biases[id(layer)] = biases[id(layer)] / scale[channels]
    for layer, channels in bond.readers:
        weights[id(layer)] = weights[id(layer)] * _by_output(layer, scale[channels], weights[id(layer)])
    changed.update(id(layer) for layer, _ in (*bond.writers, *bond.readers))
    return distance


def _norms(bond: Bond, weights: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    example = weights[id(bond.writers[0].layer)]
    written, is_read = example.new_zeros(bond.size), example.new_zeros(bond.size)
    for layer, channels in bond.writers:
        written.index_add_(0, channels, weights[id(layer)].flatten(1).square().sum(1))
    for layer, channels in bond.readers:
        weight, groups = weights[id(layer)], getattr(layer, "groups", 1)
        squares_OI = weight.square().reshape(*weight.shape[:2], -1).sum(2)
        is_read.index_add_(0, channels, squares_OI.unflatten(0, (groups, -1)).sum(1).flatten())
    return written.sqrt(), is_read.sqrt()


def _by_output(layer: Any, scale: Tensor, weight: Tensor) -> Tensor:
    """The scale of every input channel, for each output: O x I/G x 1 ..."""
    groups = getattr(layer, "groups", 1)
    scale_OI = scale.view(groups, -1).repeat_interleave(len(weight) // groups, 0)
    return scale_OI.view(*scale_OI.shape, *[1] * (weight.dim() - 2))


def _plain(module: nn.Module) -> bool:
    return site_kind(module) is not None or isinstance(module, (TransposedLinear, GroupedLinear))


def _writers(module: nn.Module) -> list[Side]:
    """The layers that make a module's outputs, unless it rearranges them."""
    if _plain(module):
        weight = read(module)
        return [Side(module, torch.arange(len(weight), device=weight.device))]
    if not isinstance(module, Branches):
        return []
    levels: list[Any] = list(module.levels)
    ranks = [len(read(level)) // module.groups for level in levels]
    places = torch.arange(module.groups * sum(ranks), device=read(levels[0]).device).view(module.groups, -1)
    return [Side(level, part.flatten()) for level, part in zip(levels, places.split(ranks, 1), strict=True)]


def _readers(module: nn.Module) -> list[Side]:
    """The layers that read a module's inputs, unless it also passes these through."""
    if _plain(module):
        weight, groups = read(module), getattr(module, "groups", 1)
        return [Side(module, torch.arange(groups * weight.shape[1], device=weight.device))]
    if not isinstance(module, Bands):
        return []
    most = max(module.counts)
    places = torch.arange(module.groups * most, device=read(module.bands[0]).device).view(module.groups, -1)
    return [Side(band, places[:, :count].flatten()) for band, count in zip(module.bands, module.counts, strict=True)]
