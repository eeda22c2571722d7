"""Replace the errors of quick fits by those of thorough fits near the ranks that a plan chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..formats import get_format
from ..plan import DENSE, Curve, Option, Plan
from ..ranks.budgeted import Knapsack
from .planner import Planner
from .request import Request

NEAR = 1.35  # a rival is fitted too if its error, at no greater cost, is at most this many times the chosen one's
ROUNDS = 4  # how often the plan is made again with new errors, at most


def refined(
    planner: Planner,
    requests: Iterable[Request],
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
) -> Planner:
    """The planner with curves that are exact near the ranks that its plans choose.

    Curves of formats without a closed form come from quick fits, whose errors are too large by a share that differs
    between formats (up to a third) and changes little along a curve. So at sites with such options, the chosen one and
    its closest rivals are fitted thoroughly, each curve is scaled to go through its fit, and the plan is made again;
    each format is fitted at most once at a site.

    Args:
        planner: makes the plans; returned unchanged if no curve needs fits.
        requests: for the plans. The knapsack replaces a rule that tries plans, as the errors are about to change.
        progress: wraps the fits, for a progress bar.
    """
    fitted = {
        name
        for name, (options, why) in planner.options.items()
        if not why and any(o.format != DENSE and get_format(o.format, planner.formats).estimates for o in options)
    }
    done: set[tuple[str, str]] = set()
    for request in requests:
        if request.rule.needs_evaluate:
            request = replace(request, rule=Knapsack())
        for _ in range(ROUNDS):
            if not fitted:
                return planner
            plan = planner.draft(request)  # new errors may move it to other ranks, which need fits of their own
            wanted = [pair for name in sorted(fitted) for pair in _worth(planner, plan, name, request.amounts)]
            todo = [(name, option) for name, option in wanted if (name, option.format) not in done]
            if not todo:
                break
            curves = {name: options for name, (options, _) in planner.options.items()}
            for name, option in todo if progress is None else progress(todo, "refine"):
                done.add((name, option.format))
                curves[name] = _through(curves[name], option, planner.fitted(name, option))
            options = {name: (curves[name], why) for name, (_, why) in planner.options.items()}
            planner = replace(planner, options=options)
    return planner


def _worth(planner: Planner, plan: Plan, name: str, keep: Mapping[str, float]) -> Iterator[tuple[str, Option]]:
    """At a site that the plan factorises, the chosen option, and the best one of each format that comes near it."""
    row, options = plan[name], planner.options[name][0]
    if row.format == DENSE:
        return
    costs = {unit: planner.prices.of(planner.sites[name], options, unit) for unit in keep}
    chosen = next(place for place, o in enumerate(options) if (o.format, o.ranks) == (row.format, row.ranks))
    yield name, options[chosen]
    for format in dict.fromkeys(option.format for option in options):
        rivals = [
            option
            for place, option in enumerate(options)
            if option.format == format and all(cost[place] <= cost[chosen] for cost in costs.values())
        ]
        best = min(rivals, key=lambda option: option.error, default=None)
        if format not in (DENSE, row.format) and best is not None and best.error <= NEAR * options[chosen].error:
            yield name, best


def _through(options: Curve, option: Option, error: float) -> Curve:
    """The options, with the curve of one format scaled so that `option` has the given error."""
    if not 0 < error < option.error:  # one lucky quick fit says nothing about the rest of the curve
        return options
    share = error / option.error
    return tuple(replace(o, error=o.error * share) if o.format == option.format else o for o in options)
