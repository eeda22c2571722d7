"""`rankwise plan`: choose formats and ranks, and write them where a person can read and edit them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from .command import command
from .forecast import only_forecast
from .options.base import LongRun, plain
from .options.choosing import Budget
from .options.data import Calibration, Network
from .options.measuring import Timed

PlanOut = Annotated[Path, plain("-o --out FILE", "The plan file to write.")]


@command
def plan(
    network: Network,
    budget: Budget,
    data: Calibration,
    timing: Timed,
    run: LongRun,
    plan_file: PlanOut = Path("plan.yaml"),
) -> None:
    """Choose formats and ranks for a budget and write them as YAML; the network is not changed.

    Example: [bold]rankwise plan nets.py:build pictures/ --weights net.pth --size 32 --keep macs=0.5 -o plan.yaml[/bold]

    [bold]--rule[/bold] chooses the ranks, [bold]--target-drop 1.0[/bold] finds the smallest network that loses no more
    than a point on [bold]--test[/bold].

    [bold]--keep latency=0.6 --engine onnxruntime[/bold] plans for measured time, first of layers, then of the whole
    planned network.

    With [bold]--stats FILE[/bold] the data is read once, and every further plan takes seconds.
    [bold]--metric weight --input-shape 3,32,32[/bold] needs no data.
    """
    with run.output(writes=[plan_file, data.stats]) as out:
        from .job import Job
        from .tables import plan_table

        timing.check()
        share, judging = budget.share(), budget.judging()
        wishes = budget.wishes(judging.fit, network.rule)
        from ..planning.wishes import Asked  # imports torch: what is spelled wrong is reported before

        where = timing.wishes(Asked.of(**wishes).needs_times, wanted=not network.is_transformer)
        job = Job.start(out, network, data, run.seed, judging=judging, wishes=wishes, joint=budget.joint)
        if only_forecast(run, job, builds=0):
            return
        chosen = job.plan(wishes, share, where, timing.latency_batch)
        chosen.save(plan_file)
        out.show(plan_table(chosen, job.session.sites, out.console.width))
        out.say(f"plan: {plan_file} (edit it, then: rankwise apply {network.model} {plan_file} DATA -o out/)")
        out.result("plan", {"plan_file": plan_file, "plan": chosen.to_dict()})
