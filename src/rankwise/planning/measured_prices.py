"""Prices measured on an engine: layer by layer while plans are made, the whole network before one is returned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..formats import Format
from ..latency.meter import Meter
from ..network.sites import Sites
from ..plan import DENSE, Plan, option_of
from ..ranks.budgeted import loss
from ..timing.clock import NOISE
from .prices import Options, Prices
from .units import Latency

# Vector units take 16 numbers at once (AVX-512; two steps of AVX2, four of NEON): a rank between two multiples costs as
# much as the next multiple.
VECTOR = 16
CHECKS = 5  # whole networks built and measured for one plan, at most
NEAR = 0.05  # a prediction within this share of the measurement is not corrected further


class MeasuredPrices(Prices):
    """Prices with latency among them; plans leave out options that are not faster than the dense layer.

    Args:
        model, sites, formats: as for `Prices`.
        meter: measures and remembers; prices follow what it knows.
        options: those of all sites; as many are measured as are needed to estimate the others.
        progress: wraps what is measured.

    Raises:
        ValueError: naming the layer, if the engine cannot run it.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        meter: Meter,
        options: Options,
        formats: Mapping[str, Format] | None = None,
        progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
    ) -> None:
        self.meter = meter
        meter.table.learn({name: curve for name, (curve, _) in options.items()}, progress)
        super().__init__(model, sites, formats, [Latency(meter, sites)])

    def usable(self, options: Options, *, certain: bool = False) -> Options:
        """See `Prices.usable`: what is faster than the dense layer; everything if a cap forbids that layer."""
        left, table = {}, self.meter.table
        for name, (curve, why) in options.items():
            if not why and any(option.format == DENSE for option in curve):
                curve = tuple(o for o in curve if o.format == DENSE or table.is_faster(name, o))
                curve = tuple(o for o in curve if (name, o) in table) if certain else curve
            left[name] = curve, why
        return left

    def learn(self, plan: Plan) -> bool:
        """See `Prices.learn`: options whose estimates are too fast are chosen first, so measuring corrects them."""
        chosen = [(row.site, option_of(row)) for row in plan.factorised]
        if all(pair in self.meter.table for pair in chosen):
            return False
        self.meter.table.measure(chosen)
        return True

    def doubts(self, amounts: Mapping[str, float], fastest: Callable[[str], Plan | None]) -> bool:
        """See `Prices.doubts`: the fastest network is measured, so that no refusal rests on estimates."""
        if Latency.name not in amounts:
            return False
        if (plan := fastest(Latency.name)) is not None:
            self.meter.check(plan)
        return True

    def settled(self, draft: Callable[[], Plan], amounts: Mapping[str, float]) -> Plan:
        """See `Prices.settled`; the planned network is built and run beside the dense one.

        If it takes longer or less than its layers said, what options save is corrected and the plan made again. Of the
        measured plans within the budget the one with the least error is returned; its `latency` holds prediction and
        measurement.

        Raises:
            ValueError: for a budget that cannot be met, with the least that was reached.
        """
        if Latency.name not in amounts:
            return draft()
        limit = self.limit(Latency.name, amounts[Latency.name])
        checked: list[Plan] = []
        for _ in range(CHECKS):
            try:
                plan = draft()
            except ValueError:
                if not checked:
                    raise
                break
            plan = replace(plan, latency=self.meter.check(plan))
            checked.append(plan)
            if _measured(plan) <= limit * (1 + NOISE) and _is_near(plan):  # a budget is met up to noise
                break
        kept = [plan for plan in checked if _measured(plan) <= limit * (1 + NOISE)]
        if not kept:
            best = min(map(_measured, checked))
            raise ValueError(
                f"a budget of {limit:,.0f} microseconds ({limit / self.meter.dense:.3f} of dense) was not met: of "
                f"{len(checked)} networks that were built the fastest takes {best:,.0f} "
                f"({best / self.meter.dense:.3f}); raise the budget, or allow more sites or lower ranks"
            )
        return min(kept, key=lambda plan: (not _is_near(plan), sum(loss(row.error or 0.0) for row in plan.rows)))


def _measured(plan: Plan) -> float:
    """Microseconds of a measured plan."""
    assert plan.latency is not None
    return 1000 * plan.latency.measured


def _is_near(plan: Plan) -> bool:
    """Whether a plan takes about as long as predicted."""
    planned = plan.planned[Latency.name]
    return abs(_measured(plan) - planned) <= NEAR * planned
