"""`rankwise heal`: train a compressed network to answer as the dense one does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .compress import Out
from .output import Output
from .stopping import checkpoint_told

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..inputs.data import Data
    from ..training import Look

_TRAINING = "Training"
MINUTES = 10.0

Artifact = Annotated[
    Path, typer.Option("--artifact", metavar="DIR", show_default=False, help="The compressed network to heal.")
]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes", metavar="N", rich_help_panel=_TRAINING, help=f"Time limit; {MINUTES:g} if --epochs is not given."
    ),
]
Epochs = Annotated[
    float | None, typer.Option("--epochs", metavar="N", rich_help_panel=_TRAINING, help="Passes over the samples.")
]
Augment = Annotated[
    str | None,
    typer.Option(
        "--augment",
        metavar="STEPS",
        rich_help_panel=_TRAINING,
        help="Random changes of pictures, which the dense network answers: flip,crop,mixup or some of these.",
    ),
]
Blocks = Annotated[
    float,
    typer.Option(
        "--blocks",
        metavar="SHARE",
        rich_help_panel=_TRAINING,
        help="Share of the time in which every block first learns by itself; 0 for none.",
    ),
]
Train = Annotated[
    str,
    typer.Option(
        "--train", metavar="WHAT", rich_help_panel=_TRAINING, help="factors (with biases and normalisations) or all."
    ),
]
Rate = Annotated[
    float, typer.Option("--rate", metavar="R", rich_help_panel=_TRAINING, help="Largest learning rate, of AdamW.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", metavar="T", rich_help_panel=_TRAINING, help="Of the softened answers.")
]
Labels = Annotated[bool, typer.Option("--labels", rich_help_panel=_TRAINING, help="Learn from the labels of DATA too.")]
Regression = Annotated[
    bool,
    typer.Option("--regression", rich_help_panel=_TRAINING, help="Outputs are values, not the scores of classes."),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", metavar="FILE", rich_help_panel=_TRAINING, help="Written all along, to go on from when stopped."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", rich_help_panel=_TRAINING, help="Go on from --checkpoint.")]


def heal(
    model: options.Model,
    data: options.Data,
    artifact: Artifact,
    out_folder: Out,
    weights: options.Weights = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    augment: Augment = None,
    blocks: Blocks = 0.0,
    train: Train = "factors",
    rate: Rate = 5e-4,
    temperature: Temperature = 2.0,
    labels: Labels = False,
    regression: Regression = False,
    checkpoint: Checkpoint = None,
    resume: Resume = False,
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
    """Train a compressed network to answer as the dense one does, without labels.

    Example: [bold]rankwise heal nets.py:build pictures/ --weights net.pth --artifact out/ -o healed/[/bold]

    A part of DATA is not trained on and judges (validation): the closest network to the dense one is what is written,
    and that is never further away than the one you had. With [bold]--checkpoint FILE[/bold] a run that was stopped goes
    on with [bold]--resume[/bold] and otherwise the same options.
    """
    with Output(json, debug=debug, writes=[out_folder]) as out:
        out.if_stopped(lambda: checkpoint_told(checkpoint, "blocks"))
        from .figures import Timing, figures_of, measure
        from .judging import Judging

        timing = Timing.of(engines, threads, latency_batch)
        judging = Judging.of(metric and [metric], classes_dim, fits=False)

        import torch  # what is written wrongly is told before

        from ..artifact import read, save, stored_bytes
        from ..evaluate import shown
        from ..factorisation.check import check_loaded
        from ..inputs.data import DataOptions
        from ..inputs.loading import load_data
        from ..inputs.models import load_artifact, load_model
        from ..running.seen import Seen
        from ..training import heal as train_network
        from .held_out import Judged
        from .steps import check_folder, warn_about_random_weights
        from .tables import figures_table

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
            dense, small = load_model(model, weights), load_artifact(model, artifact)
            plan = read(artifact).plan
            source = load_data(data, how, network=dense, model=model, samples=samples)
            held_out = None if test is None else load_data(test, how, network=dense, model=model, default_split="test")
        warn_about_random_weights(out, model, weights)
        measured_on = held_out or source
        check_loaded(dense, small, measured_on.example(timing.batch))
        judging.check(dense, measured_on)
        judge = judging.judged(out, dense, measured_on).measures[0] if judging.own or judging.name else None

        def progress(stage: str, look: Look) -> None:
            out.say(f"{stage} {look.share:4.0%}, {look.seconds:.0f} s: validation distance {look.held_out:.5g}")

        healed, healing = train_network(
            small,
            dense,
            source.inputs,
            labels=_labels(source, dense) if labels else None,
            minutes=MINUTES if minutes is None and epochs is None else minutes,
            epochs=epochs,
            augment=augment,
            blocks=blocks,
            train=train,
            logits=False if regression else None,
            classes_dim=classes_dim,
            evaluate=judge,
            temperature=temperature,
            checkpoint=checkpoint,
            resume=resume,
            progress=progress,
            batch=batch,
            rate=rate,
            seed=seed,
        )
        seen = {**read(artifact).seen, "training": Seen.of(source.inputs)}
        save(healed, out_folder, plan=plan, seen=seen)  # before anything is measured, which may fail
        untimed = Timing.of("none", 1, 1)
        before = measure(out, {"dense": dense, "compressed": small}, measured_on, timing=untimed, judging=judging)
        figures = measure(out, {"dense": dense, "compressed": healed}, measured_on, timing=timing, judging=judging)
        told = {key: value for key, value in asdict(healing).items() if key != "stages"}
        told |= {"seconds": healing.seconds, "figures_before": before["compressed"]}
        save(healed, out_folder, plan=plan, figures={**figures_of(figures, measured_on), "healing": told}, seen=seen)
        figures["compressed"]["bytes"] = stored_bytes(out_folder)
        judged = Judged.of(measured_on, seen)
        if plan is not None:
            plan.save(out_folder / "plan.yaml")
        out.show(figures_table(figures, timing.batch))
        was, now = before["compressed"], figures["compressed"]
        for name, about in now.get("measures", {}).items():
            key = "top1" if name == "accuracy" else name
            if key in was:
                out.say(f"{about['title']}: {shown(was[key], about['unit'])} -> {shown(now[key], about['unit'])}")
        out.say(judged.text)
        out.say(str(healing))
        out.say(f"artifact: {out_folder}")
        out.result(
            "heal",
            {
                "artifact": out_folder,
                "figures": figures,
                "healing": told,
                **judged.document(),
                "timing": timing.document(),
                "seed": seed,
            },
        )


def _labels(data: Data, dense: nn.Module) -> Tensor:
    if not data.labelled:
        raise ValueError(f"--labels: {data.name} has no labels; leave the option out, the dense network teaches alone")
    return data.label_numbers(dense)
