"""The truncated SVD, stored as R of its own outputs and combinations of these: fewer numbers for the same weight.

Letters: G groups, T outputs per group, D inputs per group, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..layers.kinds import Role, spatial_dims
from ..layers.modules import Pivoted
from ..linalg.pivoting import pivots
from ..network.site import Site
from .base import Cost, Factors, Format, LowRank, Ranks
from .building import chain_of, layers_in, same_tensor_options
from .convolution import convolution
from .svd import SVD
from .weights import read, write


class PivotedSVD(SVD):
    """`W = C B` with `B = W[rows]`: R outputs are computed from the inputs, all others from those R.

    The weight is the same as for `svd`. Any R independent rows span all others, so the pair needs R (D + T - R) numbers
    instead of R (D + T), and never more than the dense layer. The chosen rows span a large volume, which keeps every
    coefficient of `C` below 1.05.

    Source: Zhao et al., "Pivoting Factorization: A Compact Meta Low-Rank Representation of Sparsity for Efficient
    Inference in Large Language Models", 2025, arXiv 2501.19090.
    """

    name = "pivoted_svd"
    summary = "the svd with R of its outputs made first, the others from them, and all put in order"
    use = "fewest parameters at high ranks; the outputs are gathered once more, so svd may run faster at equal MACs"

    roles = frozenset({Role.LAYER})  # it reorders outputs, which a table cannot

    def unfit(self, site: Site) -> str | None:
        return None

    def cut(self, chain: LowRank, ranks: Ranks) -> LowRank:
        return Format.cut(self, chain, ranks)  # each rank picks other outputs

    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        (rank,) = ranks
        first, last = rank * site.groups * site.in_features, rank * (site.out_features - site.groups * rank)
        return Cost(first + last + site.out_features * bias, site.rows * first + site.out_positions * last)

    def orthonormal(self, chain: LowRank) -> tuple[bool, bool]:
        return False, False

    def indices(self, site: Site, ranks: Ranks) -> int:
        return site.out_features

    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        (rank,) = ranks
        options = same_tensor_options(layer)
        dense: Any = layer
        spatial, groups = spatial_dims(layer), getattr(layer, "groups", 1)
        rest: nn.Module | None = None
        if spatial:
            outputs, kept = dense.out_channels, groups * rank
            first = convolution(dense, dense.in_channels, kept, groups, bias=bias, **options)
            if outputs > kept:
                rest = convolution(dense, kept, outputs - kept, groups, held=(), bias=bias, **options)
        else:
            outputs, inputs = read(layer).shape
            first = nn.Linear(inputs, rank, bias, **options)
            if outputs > rank:
                rest = nn.Linear(rank, outputs - rank, bias, **options)
        places = torch.arange(outputs).reshape(groups, -1)
        order = torch.cat([places[:, :rank].flatten(), places[:, rank:].flatten()]).argsort()
        tail = Pivoted(rest, order.to(options["device"]), spatial)
        return chain_of(self, ranks, [first, tail], layer)

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        first, tail = layers_in(chain)
        U_GTR, V_GRD = factors.tensors["U_GTR"], factors.tensors["V_GRD"]
        groups, outputs, rank = U_GTR.shape
        chosen: list[Tensor] = []
        others, weights, coefficients = [], [], []
        for U_TR, V_RD in zip(U_GTR, V_GRD, strict=True):
            Q_TR, R_RR = torch.linalg.qr(U_TR)
            rows, C_TR = pivots(Q_TR)
            left = torch.ones(outputs, dtype=torch.bool, device=rows.device)
            left[rows] = False
            offset = len(chosen) * outputs
            chosen.append(rows + offset)
            others.append(left.nonzero().flatten() + offset)
            weights.append(Q_TR[rows] @ R_RR @ V_RD)
            coefficients.append(C_TR[left])
        places = torch.cat([*chosen, *others])
        with torch.no_grad():
            write(first, torch.cat(weights))
            tail.order.copy_(places.argsort())
            if tail.rest is not None:
                write(tail.rest, torch.cat(coefficients))
            if bias is not None:
                first.bias.copy_(bias[places[: groups * rank]])
                if tail.rest is not None:
                    # The first bias runs through `C` into the other outputs; their own bias takes it out again.
                    made = first.bias.to(bias.dtype).reshape(groups, rank, 1)
                    carried = torch.stack(coefficients).to(bias.dtype) @ made
                    tail.rest.bias.copy_(bias[places[groups * rank :]] - carried.flatten())

    def chain_weight(self, chain: LowRank) -> Tensor:
        first, tail = layers_in(chain)
        weight = read(first)
        parts = [weight.flatten(1)]
        if tail.rest is not None:
            V_GRD = weight.reshape(getattr(chain, "groups", 1), -1, weight[0].numel())
            C_GTR = read(tail.rest).reshape(len(V_GRD), -1, V_GRD.shape[1])
            parts.append((C_GTR @ V_GRD).flatten(0, 1))
        return torch.cat(parts)[tail.order].reshape(-1, *weight.shape[1:])

    def chain_bias(self, chain: LowRank) -> Tensor | None:
        first, tail = layers_in(chain)
        if first.bias is None:
            return None
        parts = [first.bias]
        if tail.rest is not None:
            b_GR1 = first.bias.reshape(getattr(chain, "groups", 1), -1, 1)
            C_GTR = read(tail.rest).reshape(len(b_GR1), -1, b_GR1.shape[1])
            parts.append(tail.rest.bias + (C_GTR @ b_GR1).flatten())
        return torch.cat(parts)[tail.order]
