"""`rankwise plan`: choose formats and ranks, and write them where a person can read and edit them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..names import check_engine_name
from . import options
from .output import Output

PlanOut = Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The plan file to write.")]


def plan(
    model: options.Model,
    data: options.OptionalData = None,
    plan_file: PlanOut = Path("plan.yaml"),
    weights: options.Weights = None,
    keep: options.Keep = None,
    rule: options.Rule = "knapsack",
    floor_rule: options.FloorRule = None,
    target_drop: options.TargetDrop = None,
    minimise: options.Minimise = "macs",
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
    test: options.Test = None,
    engine: options.Engine = "torch",
    threads: options.Threads = 1,
    latency_batch: options.LatencyBatch = 1,
    json: options.Json = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Choose formats and ranks for a budget and write them as YAML; the network stays as it is.

    Example: [bold]rankwise plan nets.py:build pictures/ --weights net.pth --size 32 --keep macs=0.5 -o plan.yaml[/bold]

    [bold]--rule[/bold] says how ranks are chosen, [bold]--target-drop 1.0[/bold] finds the smallest network that loses
    no more than a point on [bold]--test[/bold].

    [bold]--keep latency=0.6 --engine onnxruntime[/bold] plans for measured time, first of layers, then of the whole
    planned network.

    With [bold]--stats FILE[/bold] the data is run over once, and every further plan takes seconds. With
    [bold]--metric weight --input-shape 3,32,32[/bold] no data is needed.
    """
    with Output(json, debug=debug, writes=[plan_file, stats]) as out:
        from ..inputs.data import DataOptions
        from .constraints import check_budget, choose_options, parse_shrink
        from .judging import Judging
        from .steps import Job, wishes_gradients
        from .tables import plan_table
        from .trying import engine_for, what_times, what_tries

        judging, share = Judging.of(metric, classes_dim), parse_shrink(shrink)
        check_engine_name(engine, where=f"--engine {engine!r}: ")
        wishes = choose_options(
            keep,
            rule,
            formats,
            judging.fit,
            ignore,
            include,
            pin,
            floor,
            cap,
            round_to,
            floor_rule,
            target_drop,
            minimise,
            tie,
        )
        from ..planning.wishes import Asked  # which imports torch: what is written wrongly is told before

        check_budget(wishes)
        measuring = engine_for(Asked.of(**wishes).is_timed, engine, threads, latency_batch)
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
        times = what_times(job, measuring, latency_batch)
        chosen = job.plan({**wishes, **times, **what_tries(job, wishes)}, share)
        chosen.save(plan_file)
        out.show(plan_table(chosen, job.sites, out.console.width))
        if chosen.latency is not None:
            out.say(f"latency: {chosen.latency}")
        out.say(f"plan: {plan_file} (edit it, then: rankwise apply {model} {plan_file} DATA -o out/)")
        out.result("plan", {"plan_file": plan_file, "plan": chosen.to_dict()})
