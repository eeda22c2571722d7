"""Two factors along the rows and columns of a kernel: k x 1 -> 1 x k convolutions, fitted in the metric.

Letters: O outputs, I inputs, G groups, T outputs per group, C channels per group, H kernel rows, W kernel columns,
R rank; M = C * H merged channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..linalg import tucker2, tucker2_surface
from ..linalg.metric import Metric
from ..network.site import Site
from .base import Cost, Factors, Format, LowRank, Ranks, Rivals, relative
from .building import chain_of, layers_in, same_tensor_options, set_bias
from .convolution import convolution
from .ladders import steps
from .tucker2 import checked_sweeps
from .weights import grouped, read, ungrouped, write


class SpatialSVD(Format):
    """`W[t, c, h, w] = sum U[t, r, w] V[r, c, h]`, minimising `||(W - V) Sigma^(1/2)||_F`.

    With (channel, row) merged into one channel and columns read as taps, this is a partial Tucker factorisation that
    keeps all outputs, so one solver serves both. In the weight metric its start is the exact optimum.

    Source: Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", 2014,
    arXiv 1405.3866.
    """

    name = "spatial_svd"
    summary = "two factors: k x 1 convolution to few channels, 1 x k convolution back"
    use = "k x k convolutions: the kernel is taken apart too, and there are still only two layers to run"

    def __init__(self, sweeps: int | None = None) -> None:
        """Choose how long to fit; see `Tucker2`."""
        self.sweeps = checked_sweeps(sweeps)

    def unfit(self, site: Site) -> str | None:
        if len(site.kernel_size) != 2 or min(site.kernel_size) == 1:
            return "spatial_svd needs a convolution kernel of two directions, larger than 1 in both; use svd"
        return None

    def limits(self, site: Site) -> Ranks:
        (H, W), T, C = site.kernel_size, site.out_features // site.groups, site.weight_shape[1]
        return (min(T * W, C * H),)

    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        (rank,) = ranks
        (H, W), G, C = site.kernel_size, site.groups, site.weight_shape[1]
        first, last = rank * G * C * H, rank * W * site.out_features
        between = site.positions((0,))  # positions after the stride of the first layer and before that of the last
        macs = site.rows * first + between * last if site.is_transposed else between * first + site.rows * last
        return Cost(first + last + site.out_features * bias, macs)

    def curve(
        self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None = None
    ) -> list[tuple[Ranks, float]]:
        ranks = steps(self.limits(site)[0], step)
        errors, total = torch.zeros(len(ranks), dtype=torch.float64), 0.0
        for W_TMW, metric in zip(self._merged(site, weight), metrics, strict=True):
            errors += tucker2_surface.channel_errors(W_TMW, metric)[[rank - 1 for rank in ranks]]
            total += metric.energy(W_TMW.flatten(1))
        return [((rank,), relative(float(error), total)) for rank, error in zip(ranks, errors, strict=True)]

    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks) -> Factors:
        (rank,) = ranks = self.check(site, ranks)
        U, V, dense, error, total = [], [], [], 0.0, 0.0
        for W_TMW, metric in zip(self._merged(site, weight), metrics, strict=True):
            fit = tucker2.fit(W_TMW, metric, len(W_TMW), rank, sweeps=self.sweeps)
            U.append(torch.einsum("tu,urw->trw", fit.A_TR, fit.G_RSQ))
            V.append(fit.B_CS)
            dense.append(fit.dense())
            error += fit.error
            total += metric.energy(W_TMW.flatten(1))
        tensors = {"U_GTRW": torch.stack(U), "V_GMR": torch.stack(V)}
        weight = ungrouped(site, torch.stack(dense))
        return Factors(format=self.name, ranks=ranks, tensors=tensors, weight=weight, error=relative(error, total))

    def cuts(self, site: Site) -> tuple[int | None, ...]:
        return (site.kernel_size[1],)

    def output_factor(self, site: Site) -> tuple[str, int]:
        return "U_GTRW", 1

    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        (rank,) = ranks
        dense: Any = layer
        wide, groups, options = rank * dense.groups, dense.groups, same_tensor_options(layer)
        first = convolution(dense, dense.in_channels, wide, groups, held=(0,), bias=False, **options)
        last = convolution(dense, wide, dense.out_channels, groups, held=(1,), bias=bias, **options)
        return chain_of(self, ranks, [first, last], layer)

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        first, last = chain
        with torch.no_grad():
            write(first, factors.tensors["V_GMR"].mT)
            write(last, factors.tensors["U_GTRW"])
            set_bias(last, bias)

    def chain_weight(self, chain: LowRank) -> Tensor:
        first, last = layers_in(chain)
        groups, (rank,) = first.groups, chain.ranks
        V_GRCH = read(first).reshape(groups, rank, -1, first.kernel_size[0])
        U_GTRW = read(last).reshape(groups, -1, rank, last.kernel_size[1])
        weight = torch.einsum("gtrw,grch->gtchw", U_GTRW, V_GRCH)
        return weight.reshape(chain.out_channels, -1, first.kernel_size[0], last.kernel_size[1])

    @staticmethod
    def _merged(site: Site, weight: Tensor) -> Tensor:
        """The weight as G x T x (C H) x W."""
        W_GTCQ = grouped(site, weight)
        return W_GTCQ.reshape(*W_GTCQ.shape[:2], -1, site.kernel_size[1])
