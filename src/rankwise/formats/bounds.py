"""Errors that no fit of a form can go below, known before anything is fitted.

A form whose kernel has ranks R and S, unfolded by outputs and by channels, is a Tucker-2 of these ranks with something
more that it cannot do. So the least error of the Tucker-2 bounds its error from below. For one tap that error is the
tail of a spectrum. For more taps it is that of the start of a Tucker-2 fit, which lies above the least error: by a few
per cent in trained layers, by up to a tenth in random ones.

Letters: G groups, T outputs per group, C channels per group, Q taps, R output rank, S channel rank.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..linalg import tucker2_surface
from ..linalg.metric import Metric
from ..linalg.reduced_rank import energies
from ..network.site import Site
from .base import relative
from .ladders import steps
from .network import Network
from .weights import grouped

# Channel ranks whose errors are computed; others have the bound of the next larger one.
CHANNEL_RANKS = 24


class Bounds:
    """The relative error of the Tucker-2 that contains a form, for one site.

    Args:
        site: the site.
        weight: O x I/G [x kernel].
        metrics: one per group.
        step: ranks are multiples of it.
    """

    def __init__(self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int) -> None:
        self.W_GTCQ, self.metrics = grouped(site, weight), metrics
        _, self.T, self.C, self.Q = self.W_GTCQ.shape
        self.channel_ranks = steps(self.C, step, CHANNEL_RANKS)

    def __call__(self, network: Network) -> float:
        """The bound of a form; 0 where it keeps all outputs and channels."""
        R, S = network.unfolding_rank(network.outputs), network.unfolding_rank(network.channels)
        if self.Q == 1:
            rank = min(R, S)
            return self._tails[rank] if rank < min(self.T, self.C) else 0.0
        if R >= self.T and S >= self.C:
            return 0.0
        return float(self._surface[bisect_left(self.channel_ranks, S), R - 1])

    @cached_property
    def _total(self) -> float:
        return sum(metric.energy(W_TD) for W_TD, metric in zip(self.W_GTCQ.flatten(2), self.metrics, strict=True))

    @cached_property
    def _tails(self) -> list[float]:
        """Errors of the best factorisation of every rank from 0."""
        found = [energies(W_TD, metric) for W_TD, metric in zip(self.W_GTCQ.flatten(2), self.metrics, strict=True)]
        tails = torch.stack(found).sum(0).flip(0).cumsum(0).flip(0).tolist()
        return [relative(tail, self._total) for tail in tails]

    @cached_property
    def _surface(self) -> Tensor:
        surface = torch.zeros(len(self.channel_ranks), self.T, dtype=torch.float64)
        for W_TCQ, metric in zip(self.W_GTCQ, self.metrics, strict=True):
            surface += tucker2_surface.error_surface(W_TCQ, metric, self.channel_ranks)
        return surface / self._total if self._total > 0 else surface
