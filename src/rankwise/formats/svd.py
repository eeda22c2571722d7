"""Two factors by truncated SVD in the metric: Linear pairs, and k x k -> 1 x 1 convolutions.

Letters: O outputs, I inputs, G groups, T outputs per group, D inputs per group, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kinds import spatial_dims
from ..linalg.metric import Metric
from ..linalg.reduced_rank import balance, energies, truncate
from ..sites import Site
from .base import (
    Cost,
    Factors,
    Format,
    LowRank,
    Ranks,
    Rivals,
    grouped,
    match_layout,
    relative,
    same_tensor_options,
    set_bias,
    steps,
    ungrouped,
)
from .convolution import convolution
from .weights import read, write


class SVD(Format):
    """`W = U V` with `U = top eigenvectors of W Sigma W^T`: the exact optimum of `||(W - U V) Sigma^(1/2)||_F`.

    A convolution becomes a k x k convolution to R channels, which carries stride, padding and dilation, and a 1 x 1
    convolution. A grouped convolution has one rank for all groups. The first layer of a transposed convolution is one.
    An embedding becomes one of R numbers per row and a linear layer.

    Source: Denton et al., "Exploiting Linear Structure Within Convolutional Networks", 2014, arXiv 1404.0736; Zhang,
    Zou, He, Sun, "Accelerating Very Deep Convolutional Networks", 2015, arXiv 1505.06798.
    """

    name = "svd"
    summary = "two factors: Linear pair, or k x k convolution to few channels and a 1 x 1 convolution"
    use = "the first choice for linear layers and 1 x 1 convolutions: an exact optimum, and only two layers to run"

    def unfit(self, site: Site) -> str | None:
        return None

    def limits(self, site: Site) -> Ranks:
        return (min(site.out_features // site.groups, site.in_features),)

    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        (rank,) = ranks
        first, last = rank * site.groups * site.in_features, rank * site.out_features
        macs = (0 if site.is_embedding else site.rows * first) + site.out_positions * last
        return Cost(first + last + site.out_features * bias, macs)

    def curve(
        self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None = None
    ) -> list[tuple[Ranks, float]]:
        W_GTD = grouped(site, weight).flatten(2)
        tails: Tensor | float = 0.0
        for W_TD, metric in zip(W_GTD, metrics, strict=True):
            tails = tails + energies(W_TD, metric).flip(0).cumsum(0).flip(0).cpu()
        assert isinstance(tails, Tensor)
        total = float(tails[0])
        tails = torch.cat([tails[1:], tails.new_zeros(1)])  # tails[r - 1]: error at rank r
        return [((rank,), relative(float(tails[rank - 1]), total)) for rank in steps(self.limits(site)[0], step)]

    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks) -> Factors:
        (rank,) = ranks = self.check(site, ranks)
        W_GTCQ = grouped(site, weight)
        U, V, error, total = [], [], 0.0, 0.0
        for W_TD, metric in zip(W_GTCQ.flatten(2), metrics, strict=True):
            U_TR, V_RD, missed = truncate(W_TD, metric, rank)
            U_TR, V_RD = balance(U_TR, V_RD)
            U.append(U_TR)
            V.append(V_RD)
            error += missed
            total += metric.energy(W_TD)
        tensors = {"U_GTR": torch.stack(U), "V_GRD": torch.stack(V)}
        dense = ungrouped(site, tensors["U_GTR"] @ tensors["V_GRD"])
        return Factors(format=self.name, ranks=ranks, tensors=tensors, weight=dense, error=relative(error, total))

    def output_factor(self, site: Site) -> tuple[str, int]:
        return "U_GTR", 1

    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        (rank,) = ranks
        options = same_tensor_options(layer)
        dense: Any = layer
        if spatial_dims(layer):
            wide, groups = rank * dense.groups, dense.groups
            first = convolution(dense, dense.in_channels, wide, groups, bias=False, **options)
            last = convolution(dense, wide, dense.out_channels, groups, held=(), bias=bias, **options)
        elif isinstance(layer, nn.Embedding):
            first = nn.Embedding(dense.num_embeddings, rank, dense.padding_idx, **options)
            last = nn.Linear(rank, dense.embedding_dim, bias, **options)
        else:
            outputs, inputs = read(layer).shape
            first, last = nn.Linear(inputs, rank, False, **options), nn.Linear(rank, outputs, bias, **options)
        return match_layout(LowRank(self.name, ranks, [first, last], layer), layer)

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        first, last = _pair(chain)
        with torch.no_grad():
            write(first, factors.tensors["V_GRD"])
            write(last, factors.tensors["U_GTR"])
            set_bias(last, bias)

    def chain_weight(self, chain: LowRank) -> Tensor:
        first, last = (read(layer) for layer in _pair(chain))
        V_GRD = first.reshape(getattr(chain, "groups", 1), -1, first[0].numel())
        U_GTR = last.reshape(len(V_GRD), -1, V_GRD.shape[1])
        return (U_GTR @ V_GRD).reshape(last.shape[0], *first.shape[1:])


def _pair(chain: LowRank) -> tuple[Any, Any]:
    return chain[0], chain[1]
