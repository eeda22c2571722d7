"""`rankwise compress`: all steps in a row, from a network and data to an artifact and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..names import check_engine_name
from . import options
from .output import Output

if TYPE_CHECKING:
    from ..work import Work

Out = Annotated[
    Path, typer.Option("-o", "--out", metavar="DIR", show_default=False, help="Folder for the artifact and plan.yaml.")
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FOLDER",
        rich_help_panel="Output",
        help="Keeps what is done, to go on from when stopped; removed once the artifact is written.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", rich_help_panel="Output", help="Go on from --checkpoint; begin where there is none yet."),
]


def compress(
    model: options.Model,
    out_folder: Out,
    data: options.OptionalData = None,
    weights: options.Weights = None,
    keep: options.Keep = None,
    rule: options.Rule = "knapsack",
    floor_rule: options.FloorRule = None,
    target_drop: options.TargetDrop = None,
    minimise: options.Minimise = "macs",
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
    method: options.Method = "auto",
    shrink: options.Shrink = None,
    importance: options.Importance = None,
    fold: options.Fold = False,
    storage: options.Storage = "plain",
    engine: options.Engine = "torch",
    threads: options.Threads = 1,
    latency_batch: options.LatencyBatch = 1,
    engines: options.Engines = "auto",
    checkpoint: Checkpoint = None,
    resume: Resume = False,
    json: options.Json = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Compress a network to a budget and measure what that did.

    Example: [bold]rankwise compress nets.py:build pictures/ --weights net.pth --size 32 --keep macs=0.5 -o out/[/bold]

    DATA needs no labels: a few hundred inputs such as the network will see. The folder of [bold]-o[/bold] receives the
    artifact (rankwise.json, model.safetensors) and plan.yaml, which you may edit and give to
    [bold]rankwise apply[/bold]. Without DATA, [bold]--stats FILE[/bold] of [bold]rankwise collect[/bold]
    is enough, also of other data.

    With [bold]--checkpoint FOLDER[/bold] a run that was stopped goes on with [bold]--resume[/bold] and otherwise the
    same options, to the same network.
    """
    with Output(json, debug=debug, writes=[out_folder, stats]) as out:
        from ..inputs.data import DataOptions
        from .constraints import check_budget, check_method, choose_options, parse_shrink
        from .figures import Timing
        from .importance import Selection
        from .judging import Judging
        from .steps import Job, check_storage, finish, wishes_gradients
        from .trying import engine_for, what_times, what_tries

        check_method(method)
        check_storage(storage)
        timing, share = Timing.of(engines, threads, latency_batch), parse_shrink(shrink)
        judging = Judging.of(metric, classes_dim)
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
        from ..files import digest
        from ..planning.wishes import Asked  # which imports torch: what is written wrongly is told before

        check_budget(wishes)
        work = _work(out, checkpoint, resume, out_folder)
        out.if_stopped(lambda: _kept(work))
        selection = Selection.of(importance)
        timed = Asked.of(**wishes).is_timed
        measuring = engine_for(timed, engine, threads, latency_batch, figures=True)
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
            gradients=wishes_gradients(wishes),
            wishes=wishes,
            work=work,
        )
        # Batches that are too small for the timing are found out before the work, not after.
        job.measured_on.example(timing.batch)
        judged = None
        if target_drop is not None and work.folder is not None:
            judged = digest([digest(pair, loose=True) for pair in job.measured_on.pairs])
        job.begin(
            {
                **wishes,
                "method": job.way(method),
                "shrink": share,
                "importance": importance,
                "fold": fold,
                "measures": metric,
                "classes_dim": classes_dim,
                "judged on": judged,
                "engine": [engine, threads, latency_batch] if timed else None,
            }
        )
        times = what_times(job, measuring, latency_batch)
        plan = job.plan({**wishes, **times, **what_tries(job, wishes, method)}, share, method)
        small = job.factorise(plan, method, selection)
        finish(job, small, plan, out_folder, command="compress", timing=timing, storage=storage)
        work.remove()


def _kept(work: Work) -> str:
    """What a run that is stopped leaves for the next."""
    if work.folder is None:
        return "nothing was written; with --checkpoint FOLDER a run that is stopped can go on"
    return f"checkpoint {work.folder} holds {work.told()}; the same command with --resume goes on from there"


def _work(out: Output, checkpoint: Path | None, resume: bool, out_folder: Path) -> Work:
    """What there is to go on from."""
    from ..work import MANIFEST, Work

    if checkpoint is None:
        if resume:
            raise ValueError("--resume goes on from a folder; name it with --checkpoint FOLDER")
        return Work()
    if out_folder.resolve() in (checkpoint.resolve(), *checkpoint.resolve().parents):
        raise ValueError(f"--checkpoint {checkpoint} lies in -o {out_folder}, which is for the artifact; name another")
    there = (checkpoint / MANIFEST).is_file()
    if resume and not there:
        out.note(f"there is no checkpoint {checkpoint} yet: the work begins")
    return Work(checkpoint, resume and there)
