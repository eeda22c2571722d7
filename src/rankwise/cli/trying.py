"""What rules try plans with, what measures a loss and what measures time, from the data at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .figures import labels_fit
from .steps import Job

if TYPE_CHECKING:
    from torch import nn

    from ..evaluate import Trials
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
        found["evaluate"] = trials(job, "divergence", "one-shot", held_out=False)
    if wishes["target_drop"] is not None:
        data = job.measured_on
        if not data.real:
            raise ValueError("--target-drop measures on data; name --test or DATA")
        measure = "accuracy" if labels_fit(job.out, {"dense": job.network}, data, data.example()) else "agreement"
        where = data.name if job.test else f"{data.name}, the calibration samples themselves (name others with --test)"
        job.out.say(f"target: at most {wishes['target_drop']:g} points of {measure} lost on {where}")
        job.searched.append(data)
        found["drop"] = trials(job, measure, method)
    return found


def what_times(job: Job, timed: bool, engine: str, threads: int, batch: int, figures: bool = False) -> dict[str, Any]:
    """The arguments `example` and `engine` of `choose`, where latency is a budget.

    Args:
        job: the network and its data.
        timed: whether it is.
        engine, threads, batch: as the command line says.
        figures: whether threads and batch are those of figures as well.

    Raises:
        ValueError: for an unknown engine, where there are fewer samples than the batch wants, or for options that are
            given and have no effect.
        ImportError: for an engine that is not installed.
    """
    if not timed:
        given = {"--engine": engine != "torch", "--threads": threads != 1, "--latency-batch": batch != 1}
        if idle := [name for name in list(given)[: 1 if figures else None] if given[name]]:
            raise ValueError(f"{', '.join(idle)} would have no effect: latency is no budget here")
        return {}
    from ..latency import get_engine

    own = 1 if figures and engine.startswith("roofline:") else threads  # which a described device has none of
    return {"example": job.measured_on.example(batch), "engine": get_engine(engine, own)}


def trials(job: Job, measure: str, method: str, held_out: bool = True) -> Trials:
    """What tries a plan on the data of a job; on its calibration samples unless `held_out`."""
    from ..evaluate import Trials
    from ..factorise import factorise

    def build(plan: Plan) -> nn.Module:
        if job.way(method) == "sequential" and job.data is not None:
            stats = job.statistics if plan.metric == "fisher" else None
            return factorise(job.network, plan, stats, data=job.data.inputs, seed=job.seed)
        return factorise(job.network, plan, job.sites if plan.metric == "weight" else job.statistics)

    data = job.measured_on if held_out or job.data is None else job.data
    return Trials(job.network, build, data.pairs if measure == "accuracy" else data.inputs, measure)
