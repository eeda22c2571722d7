"""`rankwise pareto`: plans for a list of budgets from one profile, as a table, a picture and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..names import check_engine_name
from . import options
from .output import Output

if TYPE_CHECKING:
    from .. import evaluate
    from ..plan import Plan

Along = Annotated[
    str, typer.Option("--along", metavar="WHAT", help="macs, params, bytes or latency: what the budgets are of.")
]
At = Annotated[str, typer.Option("--at", metavar="SHARE,SHARE", help="Shares of the dense count, or time, to keep.")]
Own = Annotated[bool, typer.Option("--own", help="Each plan by itself, not inside the next larger one.")]
Measure = Annotated[
    bool,
    typer.Option("--measure", help="Also build every network and judge it, on --test or else DATA."),
]
PlansOut = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder for the plans and pareto.svg.")]


def pareto(
    model: options.Model,
    data: options.OptionalData = None,
    out_folder: PlansOut = Path("pareto"),
    along: Along = "macs",
    at: At = "0.9,0.8,0.7,0.6,0.5,0.4,0.3",
    own: Own = False,
    measure: Measure = False,
    weights: options.Weights = None,
    input_shape: options.InputShape = None,
    transform: options.Transform = None,
    size: options.Size = None,
    normalise: options.Normalise = "auto",
    batch: options.Batch = 64,
    samples: options.Samples = 512,
    root: options.Root = Path("data"),
    split: options.Split = None,
    batches: options.Batches = "auto",
    example_batch: options.ExampleBatch = False,
    stats: options.Stats = None,
    test: options.Test = None,
    rule: options.Rule = "knapsack",
    floor_rule: options.FloorRule = None,
    formats: options.Formats = "svd,spatial_svd,tucker2",
    metric: options.Metric = None,
    classes_dim: options.ClassesDim = None,
    ignore: options.Ignore = None,
    include: options.Include = None,
    pin: options.Pin = None,
    floor: options.Floor = None,
    cap: options.Cap = None,
    tie: options.Tie = None,
    round_to: options.RoundTo = "auto",
    shrink: options.Shrink = None,
    engine: options.Engine = "torch",
    threads: options.Threads = 1,
    latency_batch: options.LatencyBatch = 1,
    json: options.Json = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Show what every budget would cost: plans for a list of budgets, profiled once.

    Example: [bold]rankwise pareto nets.py:build pictures/ --weights net.pth --size 32 --at 0.7,0.5,0.3 --measure[/bold]

    Each plan lies inside the next larger one: a layer that was factorised keeps its format, and no rank grows as the
    budget falls. [bold]--own[/bold] lifts that. The plans are files that you may edit and give to
    [bold]rankwise apply[/bold].
    """
    with Output(json, debug=debug, writes=[out_folder, stats]) as out:
        from ..inputs.data import DataOptions
        from .constraints import choose_options, parse_shares, parse_shrink
        from .held_out import Judged
        from .judging import Judging
        from .steps import Job, wishes_gradients
        from .tables import pareto_table
        from .trying import engine_for, trials, what_times, what_tries

        keeps, share = parse_shares(along, at), parse_shrink(shrink)
        if share == "auto":
            raise ValueError("--shrink auto chooses for one plan; give a number from 0 to 1 for a list of budgets")
        judging = Judging.of(metric, classes_dim)
        check_engine_name(engine, where=f"--engine {engine!r}: ")
        wishes = choose_options(
            None, rule, formats, judging.fit, ignore, include, pin, floor, cap, round_to, floor_rule=floor_rule, tie=tie
        )
        from ..planning.pareto import plans_for  # which imports torch: what is written wrongly is told before
        from ..planning.request import Request

        measuring = engine_for(along == "latency", engine, threads, latency_batch)
        how = DataOptions(
            transform=transform,
            size=size,
            normalise=normalise,
            batch=batch,
            root=root,
            split=split,
            seed=seed,
            batches=batches,
            example_batch=example_batch,
        )
        job = Job.start(
            out,
            model,
            weights,
            data,
            how,
            samples=samples,
            stats=stats,
            test=test,
            input_shape=input_shape,
            judging=judging,
            gradients=wishes_gradients(wishes),
            wishes=wishes,
        )
        evaluate = what_tries(job, wishes).get("evaluate")
        times = what_times(job, measuring, latency_batch)
        planner = job.planner(wishes, float(share or 0), evaluate, times)
        plans = plans_for(
            planner,
            [Request(rule=wishes["rule"], keep=keep, floor=wishes["floor_rule"]) for keep in keeps],
            nested=not own,
        )
        values: list[float] = []
        judge = None
        if measure:
            if not job.measured_on.real:
                raise ValueError("--measure runs the networks on data; name --test or DATA")
            judged = judging.judged(out, job.network, job.measured_on)
            judge = judged.comparison
            trial = trials(job, judged.batches(judge, job.measured_on), judge, "auto")
            values = [trial.value(plan) for plan in out.track(plans, "measuring")]
        rows = [_row(plan, along) for plan in plans]
        for row, value in zip(rows, values, strict=False):
            row[judge.key if judge else ""] = value
        _write(out_folder, plans, along, rows, judge)
        out.show(pareto_table(rows, judge))
        compared = Judged.of(job.measured_on, job.seen) if measure else None
        if compared is not None:
            out.say(compared.text)
        out.say(f"plans and picture: {out_folder}/")
        result = {"folder": out_folder, "rows": rows, "plans": [plan.to_dict() for plan in plans]}
        result |= {} if compared is None else compared.document()
        out.result("pareto", result if judge is None else {**result, "measures": {judge.key: judge.document()}})


def _row(plan: Plan, along: str) -> dict[str, Any]:
    row: dict[str, Any] = {"keep": plan.keep[along], "factorised": len(plan.factorised)}
    row |= {f"{unit}_ratio": plan.planned[unit] / plan.dense[unit] for unit in plan.dense}
    row["error"] = sum(each.error or 0.0 for each in plan.rows)
    return row


def _write(
    folder: Path, plans: Sequence[Plan], along: str, rows: Sequence[Mapping[str, Any]], judge: evaluate.Measure | None
) -> None:
    from ..files import replacing
    from .picture import line_picture

    for plan in plans:
        plan.save(folder / f"plan-{along}-{plan.keep[along]:g}.yaml")
    points = [(row[f"{along}_ratio"], row[judge.key if judge else "error"]) for row in rows]
    title = judge.title if judge else "sum of the layers' relative errors"
    with replacing(folder / "pareto.svg") as new:
        new.write_text(line_picture(points, x=f"share of the dense network's {along}", y=title), encoding="utf-8")
