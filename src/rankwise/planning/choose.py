"""Curves, budgets, constraints and a rule to a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..latency import Engine, get_engine
from ..latency.meter import Meter
from ..network.sites import Sites
from ..plan import Curve, Plan
from ..ranks import Rule, get_floor, get_rule
from ..running.verbs import verb
from ..statistics import Statistics
from .budgets import NEEDS_EXAMPLE, check_keep
from .constraints import Constraints, Pin
from .planner import Planner, check_request
from .refine import refined
from .target import smallest
from .timed import VECTOR, TimedPlanner
from .wishes import check_wishes

if TYPE_CHECKING:
    from ..plan import Done


def needs_gradients(metric: str, rule: str | Rule) -> bool:
    """Whether a plan in that metric by that rule needs statistics with gradients."""
    return metric == "fisher" or get_rule(rule).needs_gradients


def is_timed(keep: Mapping[str, Any] | None, target_drop: float | None, minimise: str) -> bool:
    """Whether a plan by these arguments of `choose` has a latency budget."""
    return "latency" in (keep or {}) or (target_drop is not None and minimise == "latency")


def check_arguments(
    model: nn.Module,
    *,
    keep: Mapping[str, float | str] | None = None,
    rule: str | Rule = "knapsack",
    evaluate: Callable[[Plan], float] | None = None,
    target_drop: float | None = None,
    drop: Callable[[Plan], float] | None = None,
    minimise: str = "macs",
    example: Any = None,
    engine: str | Engine = "torch",
    threads: int = 1,
    **names: Any,
) -> None:
    """Refuse what is wrong with arguments of `choose` as far as the network's structure tells, without running it.

    Raises:
        ImportError: for an engine that is not installed.
        ValueError: as `choose` does.
    """
    rule = get_rule(rule)
    check_wishes(model, keep=keep, rule=rule, minimise=minimise, **names)
    if (target_drop is None) != (drop is None):
        raise ValueError("target_drop and drop go together: how much may be lost, and what measures it")
    if target_drop is None and minimise != "macs":
        raise ValueError(
            f"minimise={minimise!r} has no effect without target_drop; a budget is keep={{{minimise!r}: 0.5}}"
        )
    wanted = None if keep is None else check_keep(keep)
    check_request(rule, {minimise: 1.0, **(wanted or {})} if drop else wanted, evaluate)
    timed = is_timed(keep, target_drop, minimise)
    if timed and example is None:
        raise ValueError(NEEDS_EXAMPLE)
    given = {"example": example is not None, "engine": engine != "torch", "threads": threads != 1}
    if not timed and any(given.values()):
        idle = " and ".join(f"{name}=" for name, is_given in given.items() if is_given)
        raise ValueError(f"{idle} of choose is for latency budgets alone; add keep={{'latency': 0.5}}, or leave it out")
    if timed:
        get_engine(engine, threads)


@verb
def choose(
    model: nn.Module,
    source: Statistics | Sites,
    *,
    keep: Mapping[str, float | str] | None = None,
    rule: str | Rule = "knapsack",
    floor_rule: str | Rule | None = None,
    evaluate: Callable[[Plan], float] | None = None,
    target_drop: float | None = None,
    drop: Callable[[Plan], float] | None = None,
    minimise: str = "macs",
    formats: str | Sequence[str] | None = None,
    metric: str = "input",
    shrink: float = 0.0,
    include: str | Sequence[str] = ("*",),
    ignore: str | Sequence[str] = (),
    pin: Mapping[str, Pin] | None = None,
    floor: Mapping[str, float] | None = None,
    cap: Mapping[str, float] | None = None,
    tie: str | Sequence[str] = (),
    round_to: int | str | None = None,
    curves: Mapping[str, Curve] | None = None,
    done: Done[Curve] | None = None,
    refine: bool = True,
    example: Any = None,
    engine: str | Engine = "torch",
    threads: int = 1,
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
) -> Plan:
    """Choose format and ranks of every site by a rule; the default lets the layers together keep the most.

    `max prod_i (1 - error_i(option_i))  subject to  sum_i cost_i(option_i) + cost of all the rest <= budget`

    Args:
        model: the dense network.
        source: statistics of it, or only its sites for `metric="weight"`.
        keep: "params", "macs", "bytes", "latency", one or several, each with a fraction of the dense count (a float up
            to 1) or a number (of a latency a time, "8ms"); all are met. Rules that need no budget may do without.
        rule: how ranks are chosen: a name of `RULES`, with settings after a colon ("energy:share=0.99"), or a `Rule`.
        floor_rule: a rule whose wish is the least that every factorised site gets, for instance "stable_rank".
        evaluate: tries a plan and tells its loss, 0 for the dense network, such as `evaluate.Trials`; for rules that
            have to try something.
        target_drop: give the smallest network that loses no more than this, in the unit of `drop`.
        drop: measures what a plan loses, on held-out data, for `target_drop`; such as `evaluate.Trials` of "agreement"
            (percentage points).
        minimise: "params", "macs", "bytes" or "latency": what is smallest, for `target_drop`; `keep` then holds
            further budgets.
        formats: formats to choose from, per site; "auto" for all there are. By default svd, spatial_svd and tucker2,
            whose curves need no fits.
        metric: "input" (error of each site's output), "diagonal" (the same without covariances of the input), "fisher"
            (the same, outputs weighed by the gradients of the loss; needs statistics with gradients) or "weight".
        shrink: share of the weight metric in the metric, 0 to 1, for statistics of other data; the plan keeps it
            for `factorise`, and `choose_shrinkage` finds it. Given curves have to be made with the same one.
        include: patterns of the sites that may be factorised (globs, or regular expressions after "re:"). Embeddings
            and heads of language models stay dense unless a pattern other than "*" matches them: `["*", "lm_head"]`.
        ignore: patterns of sites that stay dense.
        pin: pattern to "dense", "format:rank[,rank]" or (format, ranks); "slr:k=16,sr=0.5,rr=0.5" where a format has
            such parameters.
        floor: pattern to the least rank, a number or a fraction of the largest.
        cap: pattern to the largest rank, likewise; a capped site cannot stay dense, unless it is ignored.
        tie: patterns; all sites that one of them matches get the same format and ranks. They must have one shape.
        round_to: ranks are multiples of this; "auto", the default, is 8 where the smaller side is at least 128, else 1,
            and 16 where latency is a budget.
        curves: result of `profile`, to try several budgets without computing it again; `formats` and `round_to` are
            those that it was made with, and cannot be given once more.
        done: as for `profile`, where no curves are given.
        refine: fit formats whose curves are estimates thoroughly near the ranks that the budget asks for, and decide
            with those errors; formats with a closed form need none of it.
        example: an input of the batch size that latency is measured with, as for `find`; for a latency budget.
        engine: where it is measured: "torch", "compile", "onnxruntime", "executorch", "cuda", "roofline:FILE.yaml".
        threads: of the CPU, for a latency budget.
        progress: wraps the sites, for a progress bar.

    Returns:
        The plan; its counts are those of the network that `factorise` builds.

    Raises:
        ImportError: for an engine that is not installed.
        ValueError: for a budget that cannot be met (with the least that can), an unknown rule or pattern (with near
            names), contradicting constraints, an unknown format or metric, a rule without what it needs or for a format
            that it does not apply to, a share outside 0 to 1, curves that do not belong to the network and metric.

    Example:
        >>> import torch, rankwise as rw
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> plan = choose(model, rw.find(model, torch.randn(1, 64)), keep={"params": 0.5}, metric="weight")
        >>> plan.planned["params"] <= 0.5 * plan.dense["params"]
        True
    """
    wanted = Constraints(include=include, ignore=ignore, pin=pin or {}, floor=floor or {}, cap=cap or {}, tie=tie)
    check_arguments(
        model,
        keep=keep,
        rule=rule,
        floor_rule=floor_rule,
        evaluate=evaluate,
        target_drop=target_drop,
        drop=drop,
        minimise=minimise,
        example=example,
        engine=engine,
        threads=threads,
        formats=formats,
        metric=metric,
        round_to=round_to,
        **vars(wanted),
    )
    rule, floor_of_rule = get_rule(rule), get_floor(floor_rule)
    keep = None if keep is None else check_keep(keep)
    timed = is_timed(keep, target_drop, minimise)
    if timed and curves is None and round_to in (None, "auto"):
        round_to = VECTOR
    running = get_engine(engine, threads) if timed else None
    planner = Planner.of(
        model,
        source,
        evaluate=evaluate,
        formats=formats,
        metric=metric,
        shrink=shrink,
        constraints=wanted,
        round_to=round_to,
        curves=curves,
        done=done,
        progress=progress,
    )
    if running is not None:
        meter = Meter(running, planner.model, planner.sites, example, metric=metric)
        planner = TimedPlanner.timed(planner, meter, progress)
    if target_drop is None or drop is None:
        if keep and refine:
            planner = refined(planner, rule, [keep], floor=floor_of_rule, progress=progress)
        return planner.plan(rule, keep, floor=floor_of_rule)
    if refine:
        middle = (1 + planner.least(minimise, keep)) / 2
        planner = refined(planner, rule, [{**(keep or {}), minimise: middle}], floor=floor_of_rule, progress=progress)
    return smallest(planner, rule, drop, target_drop, minimise=minimise, keep=keep, floor=floor_of_rule)
