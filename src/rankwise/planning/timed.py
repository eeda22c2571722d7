"""Plans whose latency is measured: layer by layer while they are made, as a whole before they are given out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

from ..latency.meter import Meter
from ..plan import DENSE, Plan, option_of
from ..ranks import FreeRule, Rule
from ..ranks.budgeted import loss
from ..running.exclusive import exclusive
from ..timing.clock import NOISE
from .budgets import Prices, check_keep
from .planner import Planner

# Vector units take 16 numbers at once (AVX-512; two steps of AVX2, four of NEON): between two multiples of it a rank
# costs what the next multiple costs.
VECTOR = 16
# What a plan chooses is measured, and the plan made again, this often, or until nothing chosen is an estimate.
ROUNDS = 8
# Whole networks are built and measured this often.
CHECKS = 5
# A prediction that is this near is not corrected any more.
NEAR = 0.05


@dataclass(frozen=True, kw_only=True)
class TimedPlanner(Planner):
    """A planner that knows what options take on an engine; those that are not faster than the dense layer are left out.

    Attributes:
        meter: measures; it remembers, and prices follow what it knows.
    """

    meter: Meter

    @classmethod
    @exclusive
    def timed(
        cls,
        planner: Planner,
        meter: Meter,
        progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
    ) -> TimedPlanner:
        """The planner with latency among its prices; measures what it takes to tell those of all options.

        Raises:
            ValueError: naming the layer, if the engine cannot run it.
        """
        meter.table.learn({name: options for name, (options, _) in planner.options.items()}, progress)
        own = {field.name: getattr(planner, field.name) for field in fields(Planner)}
        return cls(**{**own, "prices": Prices(planner.model, planner.sites, meter)}, meter=meter)

    def faster(self, *, measured: bool = False) -> Planner:
        """A planner of the options that, as far as is known now, are faster than the dense layer.

        Where a cap forbids the dense layer, all options stay.

        Args:
            measured: leave out those whose times are estimates.
        """
        options, table = {}, self.meter.table
        for name, (curve, why) in self.options.items():
            if not why and any(option.format == DENSE for option in curve):
                curve = tuple(o for o in curve if o.format == DENSE or table.is_faster(name, o))
                curve = tuple(o for o in curve if (name, o) in table) if measured else curve
            options[name] = curve, why
        own = {field.name: getattr(self, field.name) for field in fields(Planner)}
        return Planner(**{**own, "options": options})

    def least(self, unit: str, keep: Mapping[str, float] | None = None) -> float:
        """See `Planner.least`."""
        return self.faster().least(unit, keep)

    @exclusive
    def draft(
        self,
        rule: Rule,
        keep: Mapping[str, float] | None = None,
        *,
        floor: FreeRule | None = None,
        within: Plan | None = None,
    ) -> Plan:
        """See `Planner.draft`; no option of the plan is an estimate, and no refusal rests on estimates."""
        try:
            return self._draft(rule, keep, floor, within)
        except ValueError:
            amounts = {} if keep is None else check_keep(keep)
            if "latency" not in amounts:
                raise
            self._check_fastest(rule, amounts, floor, within)
            return self._draft(rule, keep, floor, within)

    def _draft(self, rule: Rule, keep: Mapping[str, float] | None, floor: FreeRule | None, within: Plan | None) -> Plan:
        """What a plan chooses is measured, and the plan is made again.

        Options that were estimated as too fast are chosen first, and found out.
        """
        for _ in range(ROUNDS):
            plan = self.faster().draft(rule, keep, floor=floor, within=within)
            chosen = [(row.site, option_of(row)) for row in plan.factorised]
            if all(pair in self.meter.table for pair in chosen):
                return plan
            self.meter.table.measure(chosen)
        return self.faster(measured=True).draft(rule, keep, floor=floor, within=within)

    @exclusive
    def plan(
        self,
        rule: Rule,
        keep: Mapping[str, float] | None = None,
        *,
        floor: FreeRule | None = None,
        within: Plan | None = None,
    ) -> Plan:
        """See `Planner.plan`; the planned network is built and run beside the dense one.

        Where it takes longer or less than its layers said, what options save is corrected and the plan is made again.

        Returns:
            Of the plans that were measured and keep to the budget the one with the least error; its `latency` holds
            what was predicted and measured.

        Raises:
            ValueError: for a budget that cannot be met, with the least that was reached.
        """
        amounts = {} if keep is None else check_keep(keep)
        if "latency" not in amounts:
            return self.draft(rule, keep, floor=floor, within=within)
        limit = self.prices.limit("latency", amounts["latency"])
        checked: list[Plan] = []
        for _ in range(CHECKS):
            try:
                plan = self.draft(rule, amounts, floor=floor, within=within)
            except ValueError:
                if not checked:
                    raise
                break
            plan = replace(plan, latency=self.meter.check(plan))
            checked.append(plan)
            if _measured(plan) <= limit * (1 + NOISE) and _is_near(plan):  # a budget is kept up to noise
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

    def _check_fastest(
        self, rule: Rule, keep: Mapping[str, float], floor: FreeRule | None, within: Plan | None
    ) -> None:
        """Measure the fastest network, so that a refusal rests on what was measured and not on estimates."""
        least = self.least("latency", keep) * (1 + 1e-6)
        if least < 1:
            with suppress(ValueError):  # a floor or a larger plan may forbid it
                self.meter.check(self._draft(rule, {**keep, "latency": least}, floor, within))


def _measured(plan: Plan) -> float:
    """Microseconds of a plan that was measured."""
    assert plan.latency is not None
    return 1000 * plan.latency.measured


def _is_near(plan: Plan) -> bool:
    """Whether a plan takes what it was predicted to take."""
    return abs(_measured(plan) - plan.planned["latency"]) <= NEAR * plan.planned["latency"]
