"""The chain of sparse low rank: built for a dense layer, filled with factors, and read back as a weight.

Letters: G groups, T outputs per group, C channels per group, Q taps, D = C Q inputs, R rank of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.kinds import spatial_dims
from ..layers.low_rank import ChainFormat
from ..layers.nested import Bands, Branches
from .base import Factors, LowRank, Ranks
from .building import chain_of, layers_in, same_tensor_options, set_bias
from .convolution import convolution
from .slr_levels import bands, built, levels_of
from .weights import read, write


def build(format: ChainFormat, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
    """See `Format.build`; levels of rank 0 have no layer."""
    options = same_tensor_options(layer)
    dense: Any = layer
    spatial, groups = spatial_dims(layer), getattr(layer, "groups", 1)
    outputs, C = (dense.out_channels, dense.in_channels // groups) if spatial else tuple(read(layer).shape)
    taps = math.prod(dense.kernel_size) if spatial else 1
    levels = [level for level in built(levels_of(ranks, outputs // groups, C), taps) if level.rank]

    def made(inputs: int, count: int, held: Sequence[int] | None) -> nn.Module:
        if spatial:
            return convolution(dense, groups * inputs, groups * count, groups, held=held, bias=False, **options)
        return nn.Linear(inputs, count, bias=False, **options)

    branches = [made(channels, rank, None) for rank, _, channels in levels]
    first = Branches(branches, [level.columns for level in levels], C, groups, spatial, options["device"])
    read_by, counts = zip(*bands(levels), strict=True)
    ends = [made(rank, count, ()) for rank, count in zip(read_by, counts, strict=True)]
    last = Bands(ends, read_by, outputs, counts, groups, spatial, bias, **options)
    return chain_of(format, ranks, [first, last], layer)


@torch.no_grad()
def fill(chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
    """See `Format.fill`."""
    first, last = layers_in(chain)
    tensors = factors.tensors
    inputs_GC, outputs_GT = tensors["inputs_GC"], tensors["outputs_GT"]
    V = [value for name, value in tensors.items() if name.startswith("V")]
    U = [value for name, value in tensors.items() if name.startswith("U")]
    if first.inputs is not None:
        gathered = len(first.inputs) // len(inputs_GC)
        first.inputs.copy_(_of_all(inputs_GC)[:, :gathered].flatten())
    for branch, V_GRD, count in zip(first.levels, V, first.counts, strict=True):
        write(branch, _own_order(V_GRD, inputs_GC) if count == first.channels else V_GRD)
    if last.order is None:
        U = [_own_order(U_GTR.mT, outputs_GT).mT for U_GTR in U]
    else:
        last.order.copy_(last.order_of(_of_all(outputs_GT).flatten()))
    done = 0
    for band, rank, count in zip(last.bands, last.counts, last.made, strict=True):
        held = [U_GTR[:, done : done + count] for U_GTR in U if U_GTR.shape[1] >= done + count]
        assert sum(part.shape[2] for part in held) == rank
        write(band, torch.cat(held, 2))
        done += count
    set_bias(last, bias)


def dense_weight(chain: LowRank) -> Tensor:
    """See `Format.chain_weight`."""
    first, last = layers_in(chain)
    groups, C = first.groups, first.channels
    kernel = read(first.levels[0]).shape[2:]
    taps = math.prod(kernel)
    V_GND = []
    for branch, count in zip(first.levels, first.counts, strict=True):
        V_GRCQ = read(branch).reshape(groups, -1, count, taps)
        if count < C:
            index = first.places()[:, None, :count, None].expand_as(V_GRCQ)
            V_GRCQ = V_GRCQ.new_zeros(*V_GRCQ.shape[:2], C, V_GRCQ.shape[3]).scatter(2, index, V_GRCQ)
        V_GND.append(V_GRCQ.flatten(2))
    V = torch.cat(V_GND, 1)
    rows = []
    for band, rank in zip(last.bands, last.counts, strict=True):
        U_GtR = read(band).reshape(groups, -1, rank)
        rows.append((U_GtR @ V[:, :rank]).flatten(0, 1))
    rows.append(V.new_zeros(last.outputs - sum(map(len, rows)), V.shape[2]))
    weight = torch.cat(rows)
    weight = weight if last.order is None else weight[last.order.long()]
    return weight.reshape(last.outputs, C, *kernel)


def _of_all(order_GC: Tensor) -> Tensor:
    """Numbers within each group, as numbers within all groups together."""
    groups, count = order_GC.shape
    return order_GC + torch.arange(groups, device=order_GC.device)[:, None] * count


def _own_order(M_GRD: Tensor, order_GC: Tensor) -> Tensor:
    """Columns, taps by channel, from the sorted order of channels back to the order of the layer."""
    M_GRCQ = M_GRD.unflatten(2, (order_GC.shape[1], -1))
    places = order_GC.argsort(1)[:, None, :, None].expand_as(M_GRCQ)
    return M_GRCQ.gather(2, places).flatten(2)
