"""Replace the errors of quick fits by those of thorough fits near the ranks that a plan chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from ..formats import Ranks, get_format
from ..plan import DENSE, Curve, Option, Plan
from ..ranks.budgeted import Knapsack
from .planner import Planner
from .request import Request

# A rival is fitted too if its error, as thorough fits of its format elsewhere suggest, is at most this many times the
# chosen one's, at no greater cost.
NEAR = 1.1
ROUNDS = 8  # how often the plan is made again with new errors, at most

# By site and format: a thorough fit has the error of a quick one to this power.
Powers = dict[tuple[str, str], float]


def refined(
    planner: Planner,
    requests: Iterable[Request],
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
) -> Planner:
    """The planner with curves that are exact near the ranks that its plans choose.

    Curves of formats without a closed form come from quick fits, whose errors are too large: by little where the error
    is large, by up to a half of it at high ranks. Over a whole curve the error of a thorough fit is about that of the
    quick one to a power, which differs between formats more than between sites. So the chosen options are fitted
    thoroughly, which gives the powers of their curves; other sites' curves of the same format get the usual one. The
    plan is made again, and then rivals that come near are fitted too. Each format is fitted at most once at a site.

    Args:
        planner: makes the plans; returned unchanged if no curve needs fits.
        requests: for the plans. The knapsack replaces a rule that tries plans, as the errors are about to change.
        progress: wraps the fits, for a progress bar.
    """
    estimated = {
        name
        for name, (options, why) in planner.options.items()
        if not why and any(o.format != DENSE and get_format(o.format, planner.formats).estimates for o in options)
    }
    original, powers = planner, Powers()
    for request in requests:
        if request.rule.needs_evaluate:
            request = replace(request, rule=Knapsack())
        for _ in range(ROUNDS):
            if not estimated:
                return planner
            plan = planner.draft(request)  # new errors may move it to other ranks, which need fits of their own
            chosen = {name: option for name in sorted(estimated) if (option := _chosen(planner, plan, name))}
            todo = [(name, option) for name, option in chosen.items() if (name, option.format) not in powers]
            if not todo:
                todo = list(_rivals(planner, chosen, request.amounts, powers))
            if not todo:
                break
            for name, option in todo if progress is None else progress(todo, "refine"):
                quick = next(
                    o for o in original.options[name][0] if (o.format, o.ranks) == (option.format, option.ranks)
                )
                powers[name, option.format] = _power(quick.error, original.reached(name, quick))
            planner = _with(original, powers, estimated)
    return planner


def _chosen(planner: Planner, plan: Plan, name: str) -> Option | None:
    """The option that the plan chooses at a site; None if it stays dense."""
    row = plan[name]
    if row.format == DENSE:
        return None
    return _same(planner.options[name][0], row.format, row.ranks)


def _same(options: Curve, format: str, ranks: Ranks) -> Option:
    return next(option for option in options if (option.format, option.ranks) == (format, ranks))


def _rivals(
    planner: Planner, chosen: Mapping[str, Option], keep: Mapping[str, float], powers: Powers
) -> Iterator[tuple[str, Option]]:
    """Options near the chosen ones: of each format that was not fitted at a site, the best at no greater cost.

    Of a format that was not fitted anywhere only the nearest, taken to gain as much from a longer fit as any other.
    """
    usual = _usual(powers)
    most = max(usual.values(), default=1.0)
    firsts: dict[str, tuple[float, str, Option]] = {}
    for name, own in chosen.items():
        for option in _best(planner, name, own, keep):
            known = option.format in usual
            ratio = (option.error if known else option.error**most) / max(own.error, 1e-12)
            if ratio > NEAR or option.format == DENSE or (name, option.format) in powers:
                continue
            if known:
                yield name, option
            elif option.format not in firsts or ratio < firsts[option.format][0]:
                firsts[option.format] = ratio, name, option
    yield from ((name, option) for _, name, option in firsts.values())


def _best(planner: Planner, name: str, chosen: Option, keep: Mapping[str, float]) -> list[Option]:
    """The best option of each format at no greater cost than the chosen one."""
    options = planner.options[name][0]
    costs = [planner.prices.table(planner.sites[name], options, unit) for unit in keep]
    own, best = options.index(chosen), dict[str, Option]()
    for place, option in enumerate(options):
        if all(cost[place] <= cost[own] for cost in costs):
            best[option.format] = min(best.get(option.format, option), option, key=lambda one: one.error)
    return list(best.values())


def _power(quick: float, thorough: float) -> float:
    """`p` with `thorough = quick ** p`.

    It is 1 if the quick fit was lucky, which says nothing about the rest of its curve, or if both agree up to rounding
    """
    return math.log(thorough) / math.log(quick) if 0 < thorough < (1 - 1e-9) * quick < 1 else 1.0


def _usual(powers: Powers) -> dict[str, float]:
    """The median power of each format."""
    by_format: dict[str, list[float]] = {}
    for (_, format), power in powers.items():
        by_format.setdefault(format, []).append(power)
    return {format: median(own) for format, own in by_format.items()}


def _with(planner: Planner, powers: Powers, estimated: Iterable[str]) -> Planner:
    """The planner with the errors of every curve to their power, or to the median power of the format."""
    usual = _usual(powers)

    def scaled(name: str, options: Curve) -> Curve:
        own = {o.format: powers.get((name, o.format), usual.get(o.format, 1.0)) for o in options}
        return tuple(o if own[o.format] == 1 else replace(o, error=o.error ** own[o.format]) for o in options)

    options = {name: (scaled(name, planner.options[name][0]), planner.options[name][1]) for name in sorted(estimated)}
    return replace(planner, options={**planner.options, **options})
