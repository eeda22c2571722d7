"""`rankwise apply`: factorise by a plan that a person has read and perhaps edited."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from .command import command
from .forecast import only_forecast
from .options.base import LongRun, Out, argument
from .options.choosing import Factorising, Shrink
from .options.data import Calibration, Network
from .options.measuring import Figured, Judged
from .parsing import parse_shrink

PlanFile = Annotated[Path, argument("PLAN", "plan.yaml, edited or not.")]


@command
def apply(
    network: Network,
    plan: PlanFile,
    out_folder: Out,
    data: Calibration,
    way: Factorising,
    judged: Judged,
    timing: Figured,
    run: LongRun,
    shrink: Shrink = None,
) -> None:
    """Factorise a network by a plan file, without choosing anything.

    Example: [bold]rankwise apply nets.py:build plan.yaml pictures/ --weights net.pth --size 32 -o out/[/bold]

    Change [bold]format[/bold] and [bold]ranks[/bold] of a row, or set [bold]format: dense[/bold] and
    [bold]ranks: \\[][/bold]; parameters and MACs are counted again. Without DATA, [bold]--stats FILE[/bold] is enough.
    """
    with run.output(writes=[out_folder, data.stats]) as out:
        from ..inputs.importance import Selection
        from ..plan import Plan
        from .job import Job
        from .results import finish

        way.check()
        figured, share, judging = timing.timing(), parse_shrink(shrink), judged.judging()
        wanted, selection = Plan.load(plan), Selection.of(way.importance)
        from ..planning.prices import recount  # imports torch: what is spelled wrong is reported before

        needed = wanted.fit_metric.needs_gradients
        job = Job.start(out, network, data, run.seed, judging=judging, folder=out_folder, way=way, gradients=needed)
        if only_forecast(run, job, engines=len(figured.engines)):
            return
        wanted = job.shrunk(recount(job.session.model, wanted, job.session.sites), share)
        job.measured_on.example(timing.latency_batch)  # batches too small for the timing fail here, before the work
        small = job.factorise(wanted, selection)
        finish(job, small, wanted, out_folder, command="apply", timing=figured, storage=way.storage)
