"""`rankwise pareto`: plans for a list of budgets from one profile, as a table, a picture and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .command import command
from .forecast import only_forecast
from .options.base import LongRun, plain
from .options.choosing import Choosing
from .options.data import Calibration, Network
from .options.measuring import Timed
from .parsing import parse_shares

if TYPE_CHECKING:
    from ..evaluate import Measure
    from ..plan import Plan
    from .job import Job

Along = Annotated[str, plain("--along WHAT", "Unit of the budgets: macs, params, bytes or latency.")]
At = Annotated[str, plain("--at SHARE,SHARE", "Shares of the dense count, or time, to keep.")]
Own = Annotated[bool, plain("--own", "Choose each plan by itself, not inside the next larger one.")]
Compare = Annotated[bool, plain("--measure", "Also build every network and judge it, on --test or else DATA.")]
PlansOut = Annotated[Path, plain("-o --out DIR", "Folder for the plans and pareto.svg.")]


@command
def pareto(
    network: Network,
    data: Calibration,
    choosing: Choosing,
    timing: Timed,
    run: LongRun,
    out_folder: PlansOut = Path("pareto"),
    along: Along = "macs",
    at: At = "0.9,0.8,0.7,0.6,0.5,0.4,0.3",
    own: Own = False,
    measure: Compare = False,
) -> None:
    """Compare budgets: one plan for each of a list, from a single profile.

    Example: [bold]rankwise pareto nets.py:build pictures/ --weights net.pth --size 32 --at 0.7,0.5,0.3 --measure[/bold]

    Each plan lies inside the next larger one: a layer that was factorised keeps its format, and no rank grows as the
    budget falls. [bold]--own[/bold] lifts that. The plans are files that you may edit and pass to
    [bold]rankwise apply[/bold].
    """
    with run.output(writes=[out_folder, data.stats]) as out:
        from ..figures.held_out import Compared
        from .job import Job
        from .tables import pareto_table

        keeps, share, judging = parse_shares(along, at), choosing.share(), choosing.judging()
        if share == "auto":
            raise ValueError("--shrink auto chooses for one plan; give a number from 0 to 1 for a list of budgets")
        timing.check()
        wishes = choosing.wishes(judging.fit, network.rule)
        where = timing.wishes(along == "latency", wanted=False)
        job = Job.start(out, network, data, run.seed, judging=judging, wishes=wishes, joint=choosing.joint)
        if only_forecast(run, job, builds=len(keeps) if measure else 0):
            return
        plans = job.plans({**wishes, "shrink": share or 0.0}, keeps, where, timing.latency_batch, nested=not own)
        rows = [_row(plan, along) for plan in plans]
        judge = _judge(job, plans, rows) if measure else None
        _write(out_folder, plans, along, rows, judge)
        out.show(pareto_table(rows, judge))
        result = {"folder": out_folder, "rows": rows, "plans": [plan.to_dict() for plan in plans]}
        if judge is not None:
            compared = Compared.of(job.measured_on, job.seen())
            out.say(compared.text)
            result |= {**compared.document(), "measures": {judge.key: judge.document()}}
        out.say(f"plans and picture: {out_folder}/")
        out.result("pareto", result)


def _judge(job: Job, plans: Sequence[Plan], rows: Sequence[dict[str, Any]]) -> Measure:
    """Build and judge the network of every plan, and add the figure to its row; returns the measure."""
    if not job.measured_on.real:
        raise ValueError("--measure runs the networks on data; name --test or DATA")
    judged = job.judging.judged(job.out, job.session.model, job.measured_on)
    judge = judged.comparison
    trials = job.trials(judged.batches(judge, job.measured_on), judge)
    for plan, row in zip(job.out.track(plans, "measuring"), rows, strict=True):
        row[judge.key] = trials.value(plan)
    return judge


def _row(plan: Plan, along: str) -> dict[str, Any]:
    row: dict[str, Any] = {"keep": plan.keep[along], "factorised": len(plan.factorised)}
    row |= {f"{unit}_ratio": plan.planned[unit] / plan.dense[unit] for unit in plan.dense}
    row["error"] = sum(each.error or 0.0 for each in plan.rows)
    return row


def _write(
    folder: Path, plans: Sequence[Plan], along: str, rows: Sequence[Mapping[str, Any]], judge: Measure | None
) -> None:
    from ..files import replacing
    from .picture import line_picture

    for plan in plans:
        plan.save(folder / f"plan-{along}-{plan.keep[along]:g}.yaml")
    points = [(row[f"{along}_ratio"], row[judge.key if judge else "error"]) for row in rows]
    title = judge.title if judge else "sum of the layers' relative errors"
    with replacing(folder / "pareto.svg") as new:
        new.write_text(line_picture(points, x=f"share of the dense network's {along}", y=title), encoding="utf-8")
