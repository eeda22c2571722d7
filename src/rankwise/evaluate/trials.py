"""Try a plan: build its network and measure what it loses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

from torch import nn

from ..plan import Plan
from ..running.batches import Batches, made
from ..running.exclusive import exclusive
from ..running.guards import unwrap
from ..running.outputs import Outputs
from .measures import MEASURES, Judge, Measure, measure, measure_of_plans
from .tallies import NO_SAMPLES

AUTO = "auto"


class Trials:
    """A function from plans to the loss of their networks, 0 for the dense one; each plan is built once.

    Args:
        model: the dense network.
        build: makes the network of a plan, for instance `lambda plan: rankwise.factorise(model, plan, stats)`.
        batches: usually held-out; pairs (inputs, labels) for "accuracy", else inputs.
        measure: "auto", the name of a measure of `MEASURES`, a `Measure`, or your own function `(model, batches) ->
            number` (see `Measure.own`). "auto" grows with the squared errors of layers: the divergence in nats if
            outputs are scores of classes, else the relative squared error in per cent. Losses are in points: of
            accuracy, of agreement, hundredths of a relative error or a cosine, nats, or the unit of your function.

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
        self,
        model: nn.Module,
        build: Callable[[Plan], nn.Module],
        batches: Iterable[Any],
        measure: str | Measure | Judge = AUTO,
    ) -> None:
        if isinstance(measure, str) and measure not in (AUTO, *MEASURES):
            raise ValueError(
                f"unknown measure {measure!r}; the measures are {AUTO}, {', '.join(MEASURES)}, or a function "
                "(model, batches) -> number"
            )
        self.model = unwrap(model)
        self.build = build
        self.batches = Batches.of(batches) if isinstance(batches, Iterator) else batches  # iterated for every plan
        self._asked = measure if isinstance(measure, (str, Measure)) else Measure.own(measure)
        self._known: dict[tuple[Any, ...], float] = {}

    @exclusive
    def __call__(self, plan: Plan) -> float:
        """Points that the network of a plan loses."""
        return self.measure.lost(self.value(plan), self.reference) if plan.factorised else 0.0

    @exclusive
    def value(self, plan: Plan) -> float:
        """The value of the network of a plan."""
        if not plan.factorised:
            return self.reference
        key = (plan.metric, plan.shrink, *((row.site, row.format, row.ranks) for row in plan.factorised))
        if key not in self._known:
            self._known[key] = self.measure(self.build(plan), self.model, self.batches)
        return self._known[key]

    @cached_property
    def measure(self) -> Measure:
        """The measure, chosen by the outputs for the first batch."""
        if isinstance(self._asked, Measure):
            return self._asked
        first = next(made(self.batches), None)
        if first is None:
            raise ValueError(NO_SAMPLES)
        if self._asked == "accuracy":
            if not isinstance(first, (tuple, list)) or len(first) != 2:
                raise ValueError("batch 0 is not a pair (inputs, labels); accuracy needs labels, agreement does not")
            return measure("accuracy", Outputs.of(self.model, *first, scores=True))
        outputs = Outputs.of(self.model, first, scores=self._asked in ("agreement", "divergence"))
        if self._asked == AUTO:
            return measure_of_plans(outputs)
        return measure(self._asked, outputs)

    @cached_property
    def reference(self) -> float:
        """The value of the dense network."""
        return self.measure.reference(self.model, self.batches)
