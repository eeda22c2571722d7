"""Try a plan: build the network that it describes and tell what it loses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from torch import nn
from torch.nn.functional import log_softmax

from ..batches import pristine
from ..guards import unwrap
from ..plan import Plan
from .accuracy import accuracy, agreement, scores_of

MEASURES = ("divergence", "agreement", "accuracy")


class Trials:
    """Calls of a plan give the loss of its network, 0 for the dense one; each plan is built once.

    Args:
        model: the dense network.
        build: makes the network of a plan, for instance `lambda plan: rankwise.factorise(model, plan, stats)`.
        batches: what to measure on, held-out as a rule; pairs (inputs, labels) for "accuracy", else inputs.
        measure: "divergence" (KL in nats, for comparing plans), "agreement" or "accuracy" (points lost).

    Raises:
        ValueError: for an unknown measure.

    Example:
        >>> import torch, rankwise as rw
        >>> model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> batches = [torch.randn(64, 32)]
        >>> stats = rw.collect(model, batches)
        >>> trials = Trials(model, lambda plan: rw.factorise(model, plan, stats), batches)
        >>> trials(rw.choose(model, stats, keep={"params": 1.0})) < 1e-6
        True
    """

    def __init__(
        self, model: nn.Module, build: Callable[[Plan], nn.Module], batches: Iterable[Any], measure: str = "divergence"
    ) -> None:
        if measure not in MEASURES:
            raise ValueError(f"unknown measure {measure!r}; the measures are {', '.join(MEASURES)}")
        self.model = unwrap(model)
        self.build = build
        self.batches = batches
        self.measure = measure
        self._known: dict[tuple[Any, ...], float] = {}

    def __call__(self, plan: Plan) -> float:
        """The loss of a plan's network."""
        key = (plan.metric, plan.shrink, *((row.site, row.format, row.ranks) for row in plan.factorised))
        if key not in self._known:
            self._known[key] = self._loss(self.build(plan)) if plan.factorised else 0.0
        return self._known[key]

    @cached_property
    def _dense_accuracy(self) -> float:
        return accuracy(self.model, self.batches, k=(1,))["top1"]

    def _loss(self, small: nn.Module) -> float:
        if self.measure == "accuracy":
            return self._dense_accuracy - accuracy(small, self.batches, k=(1,))["top1"]
        if self.measure == "agreement":
            return 100 - agreement(self.model, small, self.batches)
        return divergence(self.model, small, self.batches)


def divergence(a: nn.Module, b: nn.Module, batches: Iterable[Any]) -> float:
    """Mean Kullback-Leibler divergence of two classifiers' answers: `E sum_k p_a(k) log(p_a(k) / p_b(k))`.

    Args:
        a: the network whose answers count as right.
        b: another one, for the same inputs.
        batches: inputs, no labels.

    Returns:
        Nats, at least 0.

    Raises:
        ValueError: naming the batch whose scores are not finite or differ in shape, or if there is none.

    Example:
        >>> import torch
        >>> divergence(nn.Identity(), nn.Identity(), [torch.eye(3)])
        0.0
    """
    a, b = unwrap(a), unwrap(b)
    total, rows = 0.0, 0
    with pristine(a), pristine(b):
        for index, batch in enumerate(batches):
            p, q = scores_of(a, batch, index), scores_of(b, batch, index)
            if p.shape != q.shape:
                raise ValueError(f"batch {index}: scores of shape {list(p.shape)} and {list(q.shape)} differ")
            p, q = log_softmax(p.double(), -1), log_softmax(q.double().to(p.device), -1)
            total += float((p.exp() * (p - q)).sum())
            rows += p[..., 0].numel()
    if not rows:
        raise ValueError("there are no samples: the batches are empty, or a generator that was already used up")
    return max(total / rows, 0.0)
