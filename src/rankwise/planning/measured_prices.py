"""Prices measured on an engine: layer by layer while plans are made, the whole network before one is returned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from ..formats import Format
from ..latency.meter import Meter
from ..network.sites import Sites
from ..plan import DENSE, Plan, option_of
from ..ranks.budgeted import loss
from ..timing.clock import NOISE
from .prices import Draft, Options, Prices
from .units import Latency, Macs

logger = logging.getLogger("rankwise")

CHECKS = 5  # whole networks built and measured for one plan, at most
OWN_CHECKS = 2  # the same for a plan without a budget of time
NEAR = 0.03  # a plan that takes at least this share less than its budget is made again
SPEED = 0.7  # share of the saved MACs that a plan without a budget of time shall save in time
SPEEDS = (SPEED, 0.5, 0.25, 0.0)  # the same where the other budgets allow no more


class MeasuredPrices(Prices):
    """Prices with latency among them; plans leave out options that are not faster than the dense layer.

    Args:
        model, sites, formats: as for `Prices`.
        meter: measures and remembers; prices follow what it knows.

    Raises:
        ValueError: naming the layer, if the engine cannot run it.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        meter: Meter,
        formats: Mapping[str, Format] | None = None,
    ) -> None:
        self.meter = meter
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
        """See `Prices.learn`: what is estimated or measured too fast is chosen first, so it is measured once more."""
        chosen = [(row.site, option_of(row)) for row in plan.factorised]
        if estimated := [pair for pair in chosen if pair not in self.meter.table]:
            self.meter.table.measure(estimated)
            return True
        return self.meter.table.confirm(chosen)

    def doubts(self, amounts: Mapping[str, float], fastest: Callable[[str], Plan | None]) -> bool:
        """See `Prices.doubts`: the fastest network is measured, so that no refusal rests on estimates."""
        if Latency.name not in amounts:
            return False
        if (plan := fastest(Latency.name)) is not None:
            self.meter.check(plan)
        return True

    def settled(self, draft: Draft, amounts: Mapping[str, float], least: Callable[[str], float]) -> Plan:
        """See `Prices.settled`; the planned network is built and run beside the dense one.

        If it takes longer or less than its layers said, what options save is corrected and the plan made again. Of the
        measured plans within the budget the one with the least error is returned; its `latency` holds prediction and
        measurement.

        A plan without a latency budget gets one of its own, as long as the other budgets allow it: of the saved MACs
        (or of nothing, without a budget of MACs) the share `SPEED` has to be saved in time. A plan that turns out to be
        no faster is told.

        Raises:
            ValueError: for a budget that cannot be met, with the least that was reached.
        """
        if Latency.name in amounts:
            return self._within(draft, amounts)
        saved = 1 - self.limit(Macs.name, amounts[Macs.name]) / self.dense[Macs.name] if Macs.name in amounts else 0.0
        for speed in SPEEDS:
            share = 1 - speed * saved
            try:
                plans = self._checked(draft, {**amounts, Latency.name: share}, OWN_CHECKS)
            except ValueError as error:  # the other budgets leave no plan that is as fast
                logger.debug("no plan within %.2f of the dense time: %s", share, error)
                continue
            plan = _best(plans, share * self.meter.dense)
            break
        else:
            plan = draft(amounts, usable=False)
            plan = replace(plan, latency=self.meter.check(plan))
        if plan.factorised and _measured(plan) > (1 - NOISE) * self.meter.dense:
            logger.warning(
                "this plan is not faster in %s: it takes %.2f of the dense time; %s",
                *(self.meter.engine, _measured(plan) / self.meter.dense, advice(least(Latency.name))),
            )
        return plan

    def _within(self, draft: Draft, amounts: Mapping[str, float]) -> Plan:
        """The best plan within a budget of time, measured."""
        limit = self.limit(Latency.name, amounts[Latency.name])
        checked = self._checked(draft, amounts, CHECKS)
        best = _best(checked, limit)
        if _measured(best) > limit * (1 + NOISE):  # one measurement is no reason to refuse
            best = replace(best, latency=self.meter.check(best))
        if _measured(best) > limit * (1 + NOISE):
            raise ValueError(
                f"a budget of {limit:,.0f} microseconds ({limit / self.meter.dense:.3f} of dense) was not met: of "
                f"{len(checked)} networks that were built the fastest takes {_measured(best):,.0f} "
                f"({_measured(best) / self.meter.dense:.3f}); raise the budget, or allow more sites or lower ranks"
            )
        return best

    def _predicted(self, plan: Plan, measured: Plan) -> Plan:
        """A plan that was measured before, as it is predicted now."""
        assert measured.latency is not None
        predicted = plan.planned[Latency.name] / 1000
        now = replace(measured.latency, predicted=predicted, corrections=self.meter.corrections)
        return replace(plan, latency=now)

    def _checked(self, draft: Draft, amounts: Mapping[str, float], checks: int) -> list[Plan]:
        """Measured plans, each made with what those before it taught; the last one uses what the budget allows."""
        limit = self.limit(Latency.name, amounts[Latency.name])
        checked: list[Plan] = []
        for _ in range(checks):
            try:
                plan = draft(amounts)
            except ValueError:
                if not checked:
                    raise
                break
            if again := [place for place, other in enumerate(checked) if _same(plan, other)]:
                checked[again[0]] = self._predicted(plan, checked[again[0]])
                break
            plan = replace(plan, latency=self.meter.check(plan))
            checked.append(plan)
            used = _measured(plan) / limit
            if 1 - NEAR <= used <= 1 + NOISE or (used <= 1 and not plan.factorised):
                break
        return checked


def _best(plans: Sequence[Plan], limit: float) -> Plan:
    """The plan with the least error of those within a limit (up to noise); the fastest if there is none."""
    kept = [plan for plan in plans if _measured(plan) <= limit * (1 + NOISE)]
    if not kept:
        return min(plans, key=_measured)
    return min(kept, key=lambda plan: sum(loss(row.error or 0.0) for row in plan.rows))


def _same(plan: Plan, other: Plan) -> bool:
    return [(row.format, row.ranks) for row in plan.rows] == [(row.format, row.ranks) for row in other.rows]


def _measured(plan: Plan) -> float:
    """Microseconds of a measured plan."""
    assert plan.latency is not None
    return 1000 * plan.latency.measured


def advice(least: float) -> str:
    """What to do about a plan that is not faster: a budget of time a fifth of the way from the least to the dense time.

    Example:
        >>> advice(0.5)
        'a budget of time makes one that is, for instance keep={"latency": 0.60} (--keep latency=0.60)'
    """
    share = least + 0.2 * (1 - least)
    if share > 1 - NOISE:
        return "no plan with these formats and constraints is faster; allow other formats or more layers"
    return (
        f'a budget of time makes one that is, for instance keep={{"latency": {share:.2f}}} (--keep latency={share:.2f})'
    )
