"""Tucker-2: 1 x 1 -> k x k -> 1 x 1 convolutions, fitted in the metric.

Letters: G groups, T outputs per group, C channels per group, Q taps, R output rank, S channel rank.
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
from .weights import grouped, read, ungrouped, write

# Curves try at most this many channel ranks; each costs one eigenvalue problem of the size of the outputs.
CHANNEL_RANKS = 32


def checked_sweeps(sweeps: int | None) -> int | None:
    """The number of sweeps; ValueError if it is not a whole number from 0, or None."""
    if sweeps is not None and (isinstance(sweeps, bool) or not isinstance(sweeps, int) or sweeps < 0):
        raise ValueError(f"sweeps is {sweeps!r}; give a whole number from 0, or None for the default")
    return sweeps


class Tucker2(Format):
    """`W[t, c, q] = sum A[t, r] G[r, s, q] B[c, s]`, minimising `||(W - V) Sigma^(1/2)||_F`.

    Ranks are (output rank R, channel rank S). The first 1 x 1 runs at the resolution of the input; the core carries
    stride, padding and dilation.

    Source: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
    2016, arXiv 1511.06530 (the chain); Kalle et al., 2025, arXiv 2511.04494 (the metric).
    """

    name = "tucker2"
    summary = "three factors: 1 x 1 to few channels, small k x k core, 1 x 1 back"
    use = "k x k convolutions with many channels on both sides, where inputs and outputs can both be narrowed"

    def __init__(self, sweeps: int | None = None) -> None:
        """Choose how long to fit.

        Args:
            sweeps: at most this many; by default four, which end within about one per cent of the optimum. Sweeps after
                the fourth are Newton steps, which reach the optimum; each takes as long as about six sweeps. In the
                weight metric the default is thirty, and all are alike.

        Raises:
            ValueError: if it is not a whole number from 0.
        """
        self.sweeps = checked_sweeps(sweeps)

    def unfit(self, site: Site) -> str | None:
        if site.taps == 1:
            return "tucker2 needs a convolution kernel larger than 1 x 1; use svd"
        return None

    def limits(self, site: Site) -> Ranks:
        return (site.out_features // site.groups, site.weight_shape[1])

    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        R, S = ranks
        G, C = site.groups, site.weight_shape[1]
        first, core, last = G * C * S, G * S * R * site.taps, R * site.out_features
        macs = site.positions(()) * first + site.rows * core + site.out_positions * last
        return Cost(first + core + last + site.out_features * bias, macs)

    def curve(
        self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None = None
    ) -> list[tuple[Ranks, float]]:
        most_R, most_S = self.limits(site)
        channel_ranks = steps(most_S, step, CHANNEL_RANKS)
        surface, total = torch.zeros(len(channel_ranks), most_R, dtype=torch.float64), 0.0
        for W_TCQ, metric in zip(grouped(site, weight), metrics, strict=True):
            surface += tucker2_surface.error_surface(W_TCQ, metric, channel_ranks)
            total += metric.energy(W_TCQ.flatten(1))
        rows = zip(channel_ranks, surface.tolist(), strict=True)
        return [((R, S), relative(errors[R - 1], total)) for S, errors in rows for R in steps(most_R, step)]

    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks, enough: float = 0.0) -> Factors:
        """See `Format.fit`; stops early at a relative squared error of `enough`."""
        R, S = ranks = self.check(site, ranks)
        fits, total = [], 0.0
        for W_TCQ, metric in zip(grouped(site, weight), metrics, strict=True):
            energy = metric.energy(W_TCQ.flatten(1))
            fits.append(tucker2.fit(W_TCQ, metric, R, S, sweeps=self.sweeps, enough=enough * energy))
            total += energy
        tensors = {
            "A_GTR": torch.stack([fit.A_TR for fit in fits]),
            "G_GRSQ": torch.stack([fit.G_RSQ for fit in fits]),
            "B_GCS": torch.stack([fit.B_CS for fit in fits]),
        }
        dense = ungrouped(site, torch.stack([fit.dense() for fit in fits]))
        error = relative(sum(fit.error for fit in fits), total)
        return Factors(format=self.name, ranks=ranks, tensors=tensors, weight=dense, error=error)

    def cuts(self, site: Site) -> tuple[int | None, ...]:
        return None, site.taps

    def orthonormal(self, chain: LowRank) -> tuple[bool, bool]:
        return True, True

    def output_factor(self, site: Site) -> tuple[str, int]:
        return "A_GTR", 1

    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        R, S = ranks
        dense: Any = layer
        G, options = dense.groups, same_tensor_options(layer)
        first = convolution(dense, dense.in_channels, G * S, G, held=(), bias=False, **options)
        core = convolution(dense, G * S, G * R, G, bias=False, **options)
        last = convolution(dense, G * R, dense.out_channels, G, held=(), bias=bias, **options)
        return chain_of(self, ranks, [first, core, last], layer)

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        first, core, last = chain
        with torch.no_grad():
            write(first, factors.tensors["B_GCS"].mT)
            write(core, factors.tensors["G_GRSQ"])
            write(last, factors.tensors["A_GTR"])
            set_bias(last, bias)

    def chain_weight(self, chain: LowRank) -> Tensor:
        first, core, last = layers_in(chain)
        groups, (R, S) = core.groups, chain.ranks
        B_GSC = first.weight.reshape(groups, S, -1)
        G_GRSQ = read(core).reshape(groups, R, S, -1)
        A_GTR = last.weight.reshape(groups, -1, R)
        weight = torch.einsum("gtr,grsq,gsc->gtcq", A_GTR, G_GRSQ, B_GSC)
        return weight.reshape(chain.out_channels, -1, *core.kernel_size)
