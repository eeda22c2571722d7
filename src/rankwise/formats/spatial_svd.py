"""Two factors along the rows and columns of a kernel: k x 1 -> 1 x k convolutions, fitted in the metric.

Letters: O outputs, I inputs, G groups, T outputs per group, C channels per group, H kernel rows, W kernel columns,
R rank; M = C * H merged channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..linalg import tucker2
from ..linalg.metric import Metric
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


class SpatialSVD(Format):
    """`W[t, c, h, w] = sum U[t, r, w] V[r, c, h]`, minimising `||(W - V) Sigma^(1/2)||_F`.

    Read with (channel, row) as one merged channel and columns as taps this is a partial Tucker factorisation that keeps
    all outputs, so one solver serves both. In the weight metric its start is the exact optimum.

    Source: Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", 2014,
    arXiv 1405.3866.
    """

    name = "spatial_svd"
    summary = "two factors: k x 1 convolution to few channels, 1 x k convolution back"
    use = "k x k convolutions: the kernel is taken apart too, and there are still only two layers to run"

    def unfit(self, site: Site) -> str | None:
        if site.kind != "conv2d" or min(site.kernel_size) == 1:
            return "spatial_svd needs a convolution kernel larger than 1 in both directions; use svd"
        return None

    def limits(self, site: Site) -> Ranks:
        (H, W), T, C = site.kernel_size, site.out_features // site.groups, site.weight_shape[1]
        return (min(T * W, C * H),)

    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        (rank,) = ranks
        (H, W), G, C = site.kernel_size, site.groups, site.weight_shape[1]
        first, last = rank * G * C * H, rank * W * site.out_features
        between = sum(call.in_positions // call.in_size[0] * call.out_size[0] for call in site.calls)
        return Cost(first + last + site.out_features * bias, between * first + site.rows * last)

    def curve(
        self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None = None
    ) -> list[tuple[Ranks, float]]:
        ranks = steps(self.limits(site)[0], step)
        errors, total = torch.zeros(len(ranks), dtype=torch.float64), 0.0
        for W_TMW, metric in zip(self._merged(site, weight), metrics, strict=True):
            errors += tucker2.channel_errors(W_TMW, metric)[[rank - 1 for rank in ranks]]
            total += metric.energy(W_TMW.flatten(1))
        return [((rank,), relative(float(error), total)) for rank, error in zip(ranks, errors, strict=True)]

    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks) -> Factors:
        (rank,) = ranks = self.check(site, ranks)
        U, V, dense, error, total = [], [], [], 0.0, 0.0
        for W_TMW, metric in zip(self._merged(site, weight), metrics, strict=True):
            fit = tucker2.fit(W_TMW, metric, output_rank=len(W_TMW), channel_rank=rank)
            U.append(torch.einsum("tu,urw->trw", fit.A_TR, fit.G_RSQ))
            V.append(fit.B_CS)
            dense.append(fit.dense())
            error += fit.error
            total += metric.energy(W_TMW.flatten(1))
        tensors = {"U_GTRW": torch.stack(U), "V_GMR": torch.stack(V)}
        weight = ungrouped(site, torch.stack(dense))
        return Factors(format=self.name, ranks=ranks, tensors=tensors, weight=weight, error=relative(error, total))

    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        (rank,) = ranks
        assert isinstance(layer, nn.Conv2d)
        (H, W), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
        named = isinstance(layer.padding, str)
        ph: Any
        pw: Any
        ph, pw = (layer.padding, layer.padding) if named else ((layer.padding[0], 0), (0, layer.padding[1]))
        wide, options = rank * layer.groups, same_tensor_options(layer)
        shared: dict[str, Any] = {"groups": layer.groups, "padding_mode": layer.padding_mode, **options}
        first = nn.Conv2d(layer.in_channels, wide, (H, 1), (sh, 1), ph, (dh, 1), bias=False, **shared)
        last = nn.Conv2d(wide, layer.out_channels, (1, W), (1, sw), pw, (1, dw), bias=bias, **shared)
        return match_layout(LowRank(self.name, ranks, [first, last], layer), layer)

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        first, last = _pair(chain)
        with torch.no_grad():
            first.weight.copy_(factors.tensors["V_GMR"].mT.reshape(first.weight.shape))
            last.weight.copy_(factors.tensors["U_GTRW"].reshape(last.weight.shape))
            set_bias(last, bias)

    def chain_weight(self, chain: LowRank) -> Tensor:
        first, last = _pair(chain)
        groups, (rank,) = first.groups, chain.ranks
        V_GRCH = first.weight.reshape(groups, rank, -1, first.kernel_size[0])
        U_GTRW = last.weight.reshape(groups, -1, rank, last.kernel_size[1])
        weight = torch.einsum("gtrw,grch->gtchw", U_GTRW, V_GRCH)
        return weight.reshape(chain.out_channels, -1, first.kernel_size[0], last.kernel_size[1])

    @staticmethod
    def _merged(site: Site, weight: Tensor) -> Tensor:
        """The weight as G x T x (C H) x W."""
        W_GTCQ = grouped(site, weight)
        return W_GTCQ.reshape(*W_GTCQ.shape[:2], -1, site.kernel_size[1])


def _pair(chain: LowRank) -> tuple[Any, Any]:
    return chain[0], chain[1]
