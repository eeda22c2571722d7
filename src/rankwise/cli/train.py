"""`rankwise train`: train expanded with orthogonal factors, cut to the ranks that stand out of noise, train on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .compress import Out
from .heal import Checkpoint, Epochs
from .output import Output
from .stopping import checkpoint_told

if TYPE_CHECKING:
    from ..inputs.data import Data
    from ..training import Look, TrainReport
    from .figures import Figures

_TRAINING = "Training"

Expand = Annotated[
    str,
    typer.Option(
        "--expand",
        metavar="FORMAT",
        rich_help_panel=_TRAINING,
        help="Chains of full rank that layers are trained as: tucker2 (linear and 1 x 1 layers as svd), or svd.",
    ),
]
Orthogonal = Annotated[
    str,
    typer.Option(
        "--orthogonal",
        metavar="KIND:WEIGHT",
        rich_help_panel=_TRAINING,
        help="What keeps factors orthonormal: soft, double or srip with the weight of the penalty; hard; none.",
    ),
]
Schedule = Annotated[
    str,
    typer.Option(
        "--schedule", metavar="NAME", rich_help_panel=_TRAINING, help="Weight of the penalty: constant, cosine."
    ),
]
Tune = Annotated[
    float,
    typer.Option(
        "--tune", metavar="SHARE", rich_help_panel=_TRAINING, help="Share of the training that follows the cut."
    ),
]
Calibration = Annotated[
    int,
    typer.Option(
        "--calibration",
        metavar="N",
        rich_help_panel=_TRAINING,
        help="Samples whose outputs the cut layers are fitted to; 0 fits them to their weights.",
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", metavar="N", rich_help_panel=_TRAINING, help="Time limit; 10 epochs without a limit."),
]
Augment = Annotated[
    str | None,
    typer.Option(
        "--augment", metavar="STEPS", rich_help_panel=_TRAINING, help="Random changes of pictures: flip,crop or one."
    ),
]
Rate = Annotated[float, typer.Option("--rate", metavar="R", rich_help_panel=_TRAINING, help="Largest learning rate.")]
TuneRate = Annotated[
    float | None,
    typer.Option(
        "--tune-rate",
        metavar="R",
        rich_help_panel=_TRAINING,
        help="Largest learning rate after the cut; a tenth of --rate by default.",
    ),
]
Optimiser = Annotated[
    str, typer.Option("--optimiser", metavar="NAME", rich_help_panel=_TRAINING, help="adamw, or sgd with momentum.")
]
Patience = Annotated[
    int | None,
    typer.Option(
        "--patience",
        metavar="N",
        rich_help_panel=_TRAINING,
        help="So many looks at the held-out samples without a gain end a training.",
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", rich_help_panel=_TRAINING, help="cpu, cuda, mps; auto: cuda if there is."),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", rich_help_panel=_TRAINING, help="Go on from --checkpoint; begin where there is none yet."),
]


def train(
    model: options.Model,
    data: options.Data,
    out_folder: Out,
    weights: options.Weights = None,
    expand: Expand = "tucker2",
    orthogonal: Orthogonal = "soft:0.01",
    schedule: Schedule = "constant",
    rule: options.Rule = "evbmf",
    keep: options.Keep = None,
    ignore: options.Ignore = None,
    include: options.Include = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    tune: Tune = 0.25,
    calibration: Calibration = 512,
    augment: Augment = None,
    rate: Rate = 1e-3,
    tune_rate: TuneRate = None,
    optimiser: Optimiser = "adamw",
    patience: Patience = None,
    checkpoint: Checkpoint = None,
    resume: Resume = False,
    device: Device = "auto",
    test: options.Test = None,
    transform: options.Transform = None,
    size: options.Size = None,
    normalise: options.Normalise = "auto",
    batch: options.Batch = 64,
    samples: options.TestSamples = None,
    root: options.Root = Path("data"),
    split: options.Split = None,
    batches: options.Batches = "auto",
    example_batch: options.ExampleBatch = False,
    metric: options.Judge = None,
    classes_dim: options.ClassesDim = None,
    threads: options.Threads = 1,
    latency_batch: options.LatencyBatch = 1,
    engines: options.Engines = "auto",
    json: options.Json = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Train a network as chains of full rank, cut them to low rank, and train what is left; DATA needs labels.

    Example: [bold]rankwise train nets.py:build pictures/ --size 32 --orthogonal soft:0.1 --epochs 20 -o out/[/bold]

    From the weights of [bold]--weights FILE[/bold], or from new ones by [bold]--seed[/bold]. Ranks are those that stand
    out of noise (EVBMF), scaled to [bold]--keep[/bold] where it is given. With [bold]--checkpoint FILE --resume[/bold]
    the same command goes on wherever it was stopped and ends with the same network; torchrun runs it in several
    processes.
    """
    with Output(json, debug=debug, writes=[out_folder]) as out:
        out.if_stopped(lambda: checkpoint_told(checkpoint, "expanded"))
        from .figures import Timing, figures_of, measure
        from .judging import Judging

        timing = Timing.of(engines, threads, latency_batch)
        judging = Judging.of(metric and [metric], classes_dim, fits=False)

        import torch  # what is written wrongly is told before

        from ..artifact import save, stored_bytes
        from ..inputs.data import DataOptions
        from ..inputs.loading import load_data
        from ..inputs.models import load_model
        from ..planning.wishes import Asked, check_wishes
        from ..running.seen import Seen
        from ..training import train as train_network
        from ..training.together import rank, together
        from .constraints import parse_budgets, parse_rule
        from .held_out import Judged
        from .steps import check_folder
        from .tables import figures_table, plan_table

        torch.manual_seed(seed)
        check_folder(out_folder)
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
        with out.step("loading"):
            network = load_model(model, weights).to(_device(device))
            check_wishes(network, Asked.of(rule=rule, include=include or ("*",), ignore=ignore or ()))
            source = load_data(data, how, network=network, model=model, samples=samples)
            held_out = None
            if test is not None:
                held_out = load_data(test, how, network=network, model=model, default_split="test")
        measured_on = held_out or source
        measured_on.example(timing.batch)
        judging.check(network, measured_on)

        def progress(stage: str, look: Look) -> None:
            out.say(f"{stage} {look.share:4.0%}, {look.seconds:.0f} s: validation loss {look.held_out:.5g}")

        if not source.labelled:
            raise ValueError(f"{source.name} has no labels, which training needs; rankwise heal learns without")
        inputs, labels = list(source.inputs), source.label_numbers(network)
        with together(next(network.parameters()).device):
            small, report = train_network(
                network,
                inputs,
                labels,
                expand=expand,
                only=_only(network, measured_on, include, ignore),
                orthogonal=orthogonal,
                schedule=schedule,
                rule=parse_rule(rule),
                keep=parse_budgets(keep),
                epochs=epochs,
                minutes=minutes,
                tune=tune,
                calibration=calibration,
                augment=augment,
                checkpoint=checkpoint,
                resume=resume and _begun(out, checkpoint),
                progress=progress,
                batch=batch,
                rate=rate,
                tune_rate=tune_rate,
                optimiser=optimiser,
                patience=patience,
                seed=seed,
            )
            first = rank() == 0
        if not first:
            return
        dense, cut, small = (each.cpu() for each in (report.dense, report.cut, small))
        seen = {"calibration": Seen.of([]), "training": Seen.of(inputs)}  # calibration takes samples of the training
        save(small, out_folder, plan=report.plan, seen=seen)  # before anything is measured, which may fail
        report.plan.save(out_folder / "plan.yaml")
        untimed = Timing.of("none", 1, 1)
        before = measure(out, {"dense": dense, "cut": cut}, measured_on, timing=untimed, judging=judging)
        figures = measure(out, {"dense": dense, "compressed": small}, measured_on, timing=timing, judging=judging)
        told = _told(report, before)
        stored = {**figures_of(figures, measured_on), "training": told}
        save(small, out_folder, plan=report.plan, figures=stored, seen=seen)
        figures["compressed"]["bytes"] = stored_bytes(out_folder)
        judged = Judged.of(measured_on, seen)
        out.show(plan_table(report.plan, _sites(dense, measured_on), out.console.width))
        out.say("")
        out.show(figures_table(figures, timing.batch))
        if "top1" in before["cut"]:
            parts = (before["dense"], before["cut"], figures["compressed"])
            words = zip(("trained", "cut", "trained on"), parts, strict=True)
            out.say("top-1 accuracy: " + ", ".join(f"{word} {part['top1']:.2f} %" for word, part in words))
        out.say(judged.text)
        out.say(str(report))
        out.say(f"artifact: {out_folder}")
        out.result(
            "train",
            {
                "artifact": out_folder,
                "plan": report.plan.to_dict(),
                "figures": figures,
                "training": told,
                **judged.document(),
                "timing": timing.document(),
                "seed": seed,
            },
        )


def _only(network: Any, data: Data, include: list[str] | None, ignore: list[str] | None) -> list[str]:
    """Names of the layers to expand."""
    from ..planning.constraints import Constraints

    free = Constraints(include=include or ("*",), ignore=ignore or ()).free(sites := _sites(network, data))
    return [name for name in sites if name in free]


def _sites(network: Any, data: Data) -> Any:
    from ..network.find import find

    return find(network, data.example())


def _begun(out: Output, checkpoint: Path | None) -> bool:
    """Whether there is something to go on from."""
    if checkpoint is None:
        raise ValueError("--resume goes on from a file; name it with --checkpoint FILE")
    there = checkpoint.with_name(f"{checkpoint.name}.expanded").exists()
    if not there:
        out.note(f"there is no checkpoint {checkpoint} yet: training begins")
    return there


def _device(name: str) -> str:
    import os

    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":  # torchrun tells every process which one it is
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name!r} cannot be used here: {reason}; take --device cpu") from None
    return name


def _told(report: TrainReport, before: Figures) -> dict[str, Any]:
    """For the artifact and `--json`."""
    stages = {name: {k: v for k, v in asdict(stage).items() if k != "looks"} for name, stage in report.stages.items()}
    return {
        "losses": report.losses,
        "deviation": report.deviation,
        "seconds": report.seconds,
        "stages": stages,
        "figures_before": before,
    }
