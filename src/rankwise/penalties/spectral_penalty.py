"""Measures of singular values as a loss, with gradients in closed form, of weights or of weights in the input metric.

Letters: G groups, T outputs per group, D inputs per group, K = min(T, D) singular values.

Sources: Ou, Chen, Zhu, Liu, "Low Rank Optimization for Efficient Deep Learning", 2023, arXiv 2303.13635 (the effective
rank as a penalty); "Low-Rank Prehab", 2025, arXiv 2512.01980 (the input metric before a compression; from its idea, the
measures are ours).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..linalg.metric import Identity, Metric
from ..linalg.reduced_rank import spectrum
from ..network.sites import Sites
from ..running.guards import unwrap
from ..statistics import Statistics
from ..training.technique import Step, Technique
from ..training.trained_sites import site_matrix, trained_sites
from .measures import Measure, get_measure

VANISHED = 1e-7  # of the largest singular value: the precision of a Gram matrix in float64
DECAY = 1e-4  # beside scale-invariant measures, unless something else is asked for


def spectral(W_TD: Tensor, measure: str | Measure = "nuclear", metric: Metric | None = None) -> Tensor:
    """`f(s)` with s the singular values of `W Sigma^(1/2)`, differentiable in W.

        df/dW = U diag(f'(s) / s) U^T W Sigma,    U the left singular vectors of W Sigma^(1/2)

    With `Sigma = I` this is `U diag(f'(s)) V^T`. No singular vector is differentiated and no root of Sigma is formed.

    Args:
        W_TD: a matrix, T x D.
        measure: f, by name or as an object.
        metric: Sigma, D x D; the identity by default.

    Returns:
        A scalar. Its gradient cannot be differentiated again.

    Example:
        >>> W = torch.diag(torch.tensor([2.0, 1.0])).requires_grad_()
        >>> spectral(W, "nuclear").backward()
        >>> torch.allclose(W.grad, torch.eye(2))
        True
    """
    value: Tensor = _Spectral.apply(W_TD, get_measure(measure), metric or Identity(W_TD.shape[1], W_TD.device))
    return value


class _Spectral(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W_TD: Tensor, measure: Measure, metric: Metric) -> Tensor:
        squares_K, U_TK = spectrum(W_TD.detach(), metric)
        s_K = squares_K.clamp_min(0).sqrt()
        held = int((s_K > VANISHED * s_K[0]).sum())
        if not held:  # a zero matrix
            ctx.save_for_backward(torch.zeros_like(W_TD))
            return W_TD.new_zeros(())
        ratio_K = measure.slope(s_K)[:held] / s_K[:held]
        U_TK = U_TK[:, :held]
        gradient_TD = (U_TK * ratio_K) @ (U_TK.mT @ metric.times(W_TD.detach().double()))
        ctx.save_for_backward(gradient_TD.to(W_TD))
        return measure.value(s_K).to(W_TD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None, None]:
        (gradient_TD,) = ctx.saved_tensors
        return above[0] * gradient_TD, None, None


class SpectralPenalty:
    """`weight * sum_i f(W_i) + decay / 2 * sum_i ||W_i||_F^2` over the weights of the chosen sites.

    A convolution is its outputs by channels x taps, each group by itself. With statistics, f sees the singular values
    of `W Sigma^(1/2)`, which are what a compression in the input metric cuts off.

    Args:
        model: the dense network.
        source: its sites, or its statistics for the input metric.
        measure: f: "nuclear", "schatten", "hoyer", "effective_rank", "stable_rank", "log_det", with settings after a
            colon, or a `Measure`.
        weight: of the measure.
        decay: weight of the squared norm; by default 1e-4 for measures that do not depend on the scale, else 0.
        only: patterns of the sites.

    Raises:
        ValueError: for an unknown measure, a weight below 0, or patterns that match nothing.

    Example:
        >>> import rankwise as rw
        >>> model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 8)
        >>> penalty = SpectralPenalty(model, rw.find(model, x), "effective_rank", weight=0.01)
        >>> (model(x).square().mean() + penalty()).backward()
    """

    def __init__(
        self,
        model: nn.Module,
        source: Sites | Statistics,
        measure: str | Measure = "nuclear",
        weight: float = 1e-4,
        *,
        decay: float | None = None,
        only: str | Iterable[str] = "*",
    ) -> None:
        self.model, self.measure = unwrap(model), get_measure(measure)
        self.weight = weight
        self.decay = (DECAY if self.measure.scale_invariant else 0.0) if decay is None else decay
        for name, value in (("weight", self.weight), ("decay", self.decay)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"the {name} of a penalty is {value}; it must be 0 or more")
        sites = source.sites if isinstance(source, Statistics) else source
        self.sites = trained_sites(self.model, sites, only, "penalise")
        self.metrics: dict[str, Sequence[Metric]] = {}
        if isinstance(source, Statistics):
            self.metrics = {site.name: source.metric(site.name, "input").inputs for site in self.sites}

    def __call__(self) -> Tensor:
        """The penalty of the weights now."""
        total: Any = 0.0
        for site in self.sites:
            W_GTD = site_matrix(self.model, site)
            metrics: Sequence[Metric | None] = self.metrics.get(site.name) or [None] * len(W_GTD)
            for W_TD, metric in zip(W_GTD, metrics, strict=True):
                total = total + self.weight * spectral(W_TD, self.measure, metric)
            if self.decay:
                total = total + self.decay / 2 * W_GTD.square().sum()
        result: Tensor = total
        return result


class Penalised(Technique):
    """`SpectralPenalty` as a technique of `Loop`, evaluated every few steps; the held-out loss includes it.

    In our measurement (docs/training.md) no measure beat compressing a network trained without it by more than noise.

    Args:
        source, measure, weight, decay, only: as for `SpectralPenalty`.
        every: steps from one evaluation to the next; each counts for all of them.
    """

    def __init__(
        self,
        source: Sites | Statistics,
        measure: str | Measure = "nuclear",
        weight: float = 1e-4,
        *,
        every: int = 1,
        decay: float | None = None,
        only: str | Iterable[str] = "*",
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1 step")
        self.source, self.measure, self.weight, self.decay = source, get_measure(measure), weight, decay
        self.every, self.only, self._number = every, only, 0

    def begin(self, model: nn.Module) -> None:
        self._penalty = SpectralPenalty(model, self.source, self.measure, self.weight, decay=self.decay, only=self.only)

    def before_step(self, step: Step) -> None:
        self._number = step.number

    def penalty(self) -> Tensor | None:
        return None if self._number % self.every else self.every * self._penalty()

    @torch.no_grad()
    def price(self) -> float:
        return float(self._penalty())
