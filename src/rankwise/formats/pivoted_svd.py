"""The truncated SVD stored as some of its own outputs and combinations of them: fewer numbers for the same weight.

Letters: G groups, T outputs per group, D inputs per group, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..linalg.pivoting import pivots
from ..sites import Site
from .base import Cost, Factors, LowRank, Ranks, match_layout, same_tensor_options
from .modules import Pivoted
from .svd import SVD


class PivotedSVD(SVD):
    """`W = C B` with `B = W[rows]`: R outputs are computed from the inputs, all others from those R.

    The same weight as that of `svd`. Any R independent rows of it span all of them, so the pair needs R (D + T - R)
    numbers instead of R (D + T), and never more than the dense layer. The rows are chosen to be of large volume, which
    keeps every coefficient of `C` below 1.05.

    Source: Zhao et al., "Pivoting Factorization: A Compact Meta Low-Rank Representation of Sparsity for Efficient
    Inference in Large Language Models", 2025, arXiv 2501.19090.
    """

    name = "pivoted_svd"
    summary = "the svd with R of its outputs made first, the others from them, and all put in order"
    use = "fewest parameters at high ranks; the outputs are gathered once more, so svd may run faster at equal MACs"

    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        (rank,) = ranks
        pair = rank * (site.groups * site.in_features + site.out_features - site.groups * rank)
        return Cost(pair + site.out_features * bias, site.rows * pair)

    def indices(self, site: Site, ranks: Ranks) -> int:
        return site.out_features

    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        (rank,) = ranks
        first, last = super().build(layer, ranks, bias)
        options = same_tensor_options(layer)
        rest: nn.Module | None = None
        if isinstance(first, nn.Conv2d):
            assert isinstance(last, nn.Conv2d)
            groups, outputs, spatial = first.groups, last.out_channels, len(first.kernel_size)
            if others := outputs - groups * rank:
                rest = nn.Conv2d(groups * rank, others, 1, groups=groups, bias=bias, **options)
        else:
            assert isinstance(last, nn.Linear)
            groups, outputs, spatial = 1, last.out_features, 0
            if others := outputs - rank:
                rest = nn.Linear(rank, others, bias=bias, **options)
        if bias:
            first.bias = nn.Parameter(torch.zeros(groups * rank, **options))
        places = torch.arange(outputs).reshape(groups, -1)
        order = torch.cat([places[:, :rank].flatten(), places[:, rank:].flatten()]).argsort()
        tail = Pivoted(rest, order.to(options["device"]), spatial)
        return match_layout(LowRank(self.name, ranks, [first, tail], layer), layer)

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        first, tail = _parts(chain)
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
            first.weight.copy_(torch.cat(weights).reshape(first.weight.shape))
            tail.order.copy_(places.argsort())
            if tail.rest is not None:
                tail.rest.weight.copy_(torch.cat(coefficients).reshape(tail.rest.weight.shape))
            if bias is not None:
                first.bias.copy_(bias[places[: groups * rank]])
                if tail.rest is not None:
                    made = first.bias.to(bias.dtype).reshape(groups, rank, 1)
                    carried = torch.stack(coefficients).to(bias.dtype) @ made
                    tail.rest.bias.copy_(bias[places[groups * rank :]] - carried.flatten())

    def chain_weight(self, chain: LowRank) -> Tensor:
        first, tail = _parts(chain)
        weight: Tensor = first.weight
        parts = [weight.flatten(1)]
        if tail.rest is not None:
            groups = chain.groups if hasattr(chain, "groups") else 1
            V_GRD = weight.reshape(groups, -1, weight[0].numel())
            C_GTR = tail.rest.weight.reshape(groups, -1, V_GRD.shape[1])
            parts.append((C_GTR @ V_GRD).flatten(0, 1))
        return torch.cat(parts)[tail.order].reshape(-1, *weight.shape[1:])

    def chain_bias(self, chain: LowRank) -> Tensor | None:
        first, tail = _parts(chain)
        if first.bias is None or tail.rest is None:
            return None if first.bias is None else first.bias[tail.order]
        groups = chain.groups if hasattr(chain, "groups") else 1
        C_GTR = tail.rest.weight.reshape(groups, -1, len(first.bias) // groups)
        carried = (C_GTR @ first.bias.reshape(groups, -1, 1)).flatten()
        return torch.cat([first.bias, tail.rest.bias + carried])[tail.order]


def _parts(chain: LowRank) -> tuple[Any, Any]:
    return chain[0], chain[1]
