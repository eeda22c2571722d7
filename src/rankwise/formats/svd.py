"""Two factors by truncated SVD in the metric: Linear pairs, and k x k -> 1 x 1 convolutions.

Letters: O outputs, I inputs, G groups, T outputs per group, D inputs per group, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
    kind_of,
    match_layout,
    relative,
    same_tensor_options,
    set_bias,
    steps,
    ungrouped,
)


class SVD(Format):
    """`W = U V` with `U = top eigenvectors of W Sigma W^T`: the exact optimum of `||(W - U V) Sigma^(1/2)||_F`.

    A convolution becomes a k x k convolution to R channels, which carries stride, padding and dilation, and a 1 x 1
    convolution. A grouped convolution has one rank for all groups.

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
        pair = rank * (site.groups * site.in_features + site.out_features)
        return Cost(pair + site.out_features * bias, site.rows * pair)

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

    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        (rank,) = ranks
        options = same_tensor_options(layer)
        if isinstance(layer, nn.Conv2d):
            wide = rank * layer.groups
            return match_layout(
                LowRank(
                    self.name,
                    ranks,
                    [
                        nn.Conv2d(
                            layer.in_channels,
                            wide,
                            layer.kernel_size,  # type: ignore[arg-type]
                            layer.stride,  # type: ignore[arg-type]
                            layer.padding,  # type: ignore[arg-type]
                            layer.dilation,  # type: ignore[arg-type]
                            layer.groups,
                            bias=False,
                            padding_mode=layer.padding_mode,
                            **options,
                        ),
                        nn.Conv2d(wide, layer.out_channels, 1, groups=layer.groups, bias=bias, **options),
                    ],
                    layer,
                ),
                layer,
            )
        transposed = kind_of(layer) == "conv1d_hf"
        weight = layer.weight
        assert isinstance(weight, Tensor)
        outputs, inputs = weight.shape[::-1] if transposed else weight.shape
        pair = [nn.Linear(inputs, rank, bias=False, **options), nn.Linear(rank, outputs, bias=bias, **options)]
        return match_layout(LowRank(self.name, ranks, pair, layer), layer)

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        first, last = _pair(chain)
        with torch.no_grad():
            first.weight.copy_(factors.tensors["V_GRD"].reshape(first.weight.shape))
            last.weight.copy_(factors.tensors["U_GTR"].reshape(last.weight.shape))
            set_bias(last, bias)

    def chain_weight(self, chain: LowRank) -> Tensor:
        down, up = _pair(chain)
        first, last = down.weight, up.weight
        groups = down.groups if isinstance(down, nn.Conv2d) else 1
        V_GRD = first.reshape(groups, -1, first[0].numel())
        U_GTR = last.reshape(groups, -1, V_GRD.shape[1])
        return (U_GTR @ V_GRD).reshape(last.shape[0], *first.shape[1:])


def _pair(chain: LowRank) -> tuple[Any, Any]:
    return chain[0], chain[1]
