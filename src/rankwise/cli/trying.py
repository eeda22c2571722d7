"""What rules try plans with, what measures a loss and what measures time, from the data at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .steps import Job

if TYPE_CHECKING:
    from torch import nn

    from ..evaluate import Measure, Trials
    from ..latency import Engine
    from ..plan import Plan


def what_tries(job: Job, wishes: Mapping[str, Any], method: str = "auto") -> dict[str, Any]:
    """The arguments `evaluate` and `drop` of `choose`, where the wishes need them.

    Args:
        job: the network and its data.
        wishes: keyword arguments of `choose`.
        method: how the network will be factorised.

    Raises:
        ValueError: if there is no data to try anything on.
    """
    found: dict[str, Any] = {}
    if wishes["rule"].needs_evaluate:
        if job.data is None:
            raise ValueError(f"--rule {wishes['rule'].name} tries plans on data; name DATA")
        # Many plans are tried: one-shot fits take a second where sequential ones run both networks over the data.
        judge = job.judging.for_plans(job.out, job.network, job.data)
        batches = job.data.pairs if judge.judge is not None and job.data.labelled else job.data.inputs
        found["evaluate"] = trials(job, batches, judge, "one-shot")
    if wishes["target_drop"] is not None:
        data = job.measured_on
        if not data.real:
            raise ValueError("--target-drop measures on data; name --test or DATA")
        judged = job.judging.judged(job.out, job.network, data)
        judge = judged.measures[0]
        where = data.name if job.test else f"{data.name}, the calibration samples themselves (name others with --test)"
        job.out.say(f"target: at most {judge.points(wishes['target_drop'])} lost on {where}")
        job.out.say(f"judged by {judge.title}, {judge.direction}")
        job.searched.append(data)
        found["drop"] = trials(job, judged.batches(judge, data), judge, method)
    return found


def engine_for(timed: bool, engine: str, threads: int, batch: int, figures: bool = False) -> Engine | None:
    """What measures a latency budget, None where there is none; asked for before any long work begins.

    Args:
        timed: whether there is one.
        engine, threads, batch: as the command line says.
        figures: whether threads and batch are those of figures as well.

    Raises:
        ValueError: for an unknown engine, or for options that are given and have no effect.
        ImportError: for an engine that is not installed.
    """
    if not timed:
        given = {"--engine": engine != "torch", "--threads": threads != 1, "--latency-batch": batch != 1}
        if idle := [name for name in list(given)[: 1 if figures else None] if given[name]]:
            raise ValueError(f"{', '.join(idle)} would have no effect: latency is no budget here")
        return None
    from ..latency import get_engine

    own = 1 if figures and engine.startswith("roofline:") else threads  # which a described device has none of
    return get_engine(engine, own)


def what_times(job: Job, engine: Engine | None, batch: int) -> dict[str, Any]:
    """The arguments `example` and `engine` of `choose`, where latency is a budget.

    Raises:
        ValueError: where there are fewer samples than the batch wants.
    """
    return {} if engine is None else {"example": job.measured_on.example(batch), "engine": engine}


def trials(job: Job, batches: Iterable[Any], measure: Measure, method: str) -> Trials:
    """What tries a plan on batches by a measure."""
    from ..evaluate import Trials
    from ..factorisation import factorise

    def build(plan: Plan) -> nn.Module:
        if job.way(method) == "sequential" and job.data is not None:
            stats = job.statistics if plan.fit_metric.needs_gradients else None
            return factorise(job.network, plan, stats, data=job.data.inputs, seed=job.seed)
        return factorise(job.network, plan, job.statistics if plan.fit_metric.needs_statistics else job.sites)

    return Trials(job.network, build, batches, measure)
