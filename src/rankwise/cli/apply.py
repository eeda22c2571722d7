"""`rankwise apply`: factorise by a plan that a person has read and perhaps edited."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .compress import Out
from .output import Output

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", show_default=False, help="plan.yaml, edited or not.")]


def apply(
    model: options.Model,
    plan: PlanFile,
    out_folder: Out,
    data: options.OptionalData = None,
    weights: options.Weights = None,
    test: options.Test = None,
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
    method: options.Method = "auto",
    shrink: options.Shrink = None,
    importance: options.Importance = None,
    fold: options.Fold = False,
    storage: options.Storage = "plain",
    metric: options.Judge = None,
    classes_dim: options.ClassesDim = None,
    threads: options.Threads = 1,
    latency_batch: options.LatencyBatch = 1,
    engines: options.Engines = "auto",
    json: options.Json = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Factorise a network by a plan file, without choosing anything.

    Example: [bold]rankwise apply nets.py:build plan.yaml pictures/ --weights net.pth --size 32 -o out/[/bold]

    Change [bold]format[/bold] and [bold]ranks[/bold] of a row, or set [bold]format: dense[/bold] and
    [bold]ranks: \\[][/bold]; parameters and MACs are counted anew. Without DATA, [bold]--stats FILE[/bold] is enough.
    """
    with Output(json, debug=debug, writes=[out_folder, stats]) as out:
        from ..inputs.data import DataOptions
        from ..plan import Plan
        from .constraints import check_method, parse_shrink
        from .figures import Timing
        from .importance import Selection
        from .judging import Judging
        from .steps import Job, check_storage, finish

        check_storage(storage)
        check_method(method)
        timing, share = Timing.of(engines, threads, latency_batch), parse_shrink(shrink)
        selection, judging = Selection.of(importance), Judging.of(metric and [metric], classes_dim, fits=False)
        wanted = Plan.load(plan)
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
            folder=out_folder,
            fold=fold,
            judging=judging,
            gradients=wanted.fit_metric.needs_gradients,
        )
        wanted = job.shrunk(job.edited(wanted), share, method)
        # Batches that are too small for the timing are found out before the work, not after.
        job.measured_on.example(timing.batch)
        small = job.factorise(wanted, method, selection)
        finish(job, small, wanted, out_folder, command="apply", timing=timing, storage=storage)
