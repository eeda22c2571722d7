"""`rankwise heal`: train a compressed network to answer as the dense one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .command import command
from .forecast import only_training_forecast
from .options.base import LongRun, Out, plain, training
from .options.data import LearnedFrom, Network
from .options.measuring import Figured, Judged
from .output import Output
from .stopping import checkpoint_told

if TYPE_CHECKING:
    from torch import nn

    from ..inputs.data import Data
    from ..training import HealReport, Look

MINUTES = 10.0

Artifact = Annotated[Path, plain("--artifact DIR", "The compressed network to heal.", shown=False)]
Epochs = Annotated[float | None, training("--epochs N", "Passes over the samples.")]
Checkpoint = Annotated[
    Path | None, training("--checkpoint FILE", "Checkpoint, updated throughout the run, to resume from.")
]


@dataclass(frozen=True, kw_only=True)
class Healing:
    """How the network learns."""

    minutes: Annotated[float | None, training("--minutes N", f"Time limit; {MINUTES:g} if --epochs is not given.")] = (
        None
    )
    epochs: Epochs = None
    augment: Annotated[
        str | None,
        training(
            "--augment STEPS",
            "Random changes of pictures, which the dense network answers: flip,crop,mixup or some of these.",
        ),
    ] = None
    blocks: Annotated[
        float, training("--blocks SHARE", "Share of the time in which every block first learns by itself; 0 for none.")
    ] = 0.0
    train: Annotated[str, training("--train WHAT", "factors (with biases and normalisations) or all.")] = "factors"
    rate: Annotated[float, training("--rate R", "Largest learning rate, of AdamW.")] = 5e-4
    temperature: Annotated[float, training("--temperature T", "Temperature that softens the answers.")] = 2.0
    labels: Annotated[bool, training("--labels", "Learn from the labels of DATA too.")] = False
    regression: Annotated[bool, training("--regression", "Outputs are values, not the scores of classes.")] = False
    checkpoint: Checkpoint = None
    resume: Annotated[bool, training("--resume", "Resume from --checkpoint.")] = False

    @property
    def limit(self) -> float | None:
        """Minutes, unless only passes limit the training."""
        return MINUTES if self.minutes is None and self.epochs is None else self.minutes

    def arguments(self, data: Data, dense: nn.Module) -> dict[str, Any]:
        """Keyword arguments of `rankwise.heal`."""
        options = {**vars(self), "logits": False if self.regression else None}
        del options["regression"]
        options["minutes"] = self.limit
        if self.labels and not data.labelled:
            raise ValueError(
                f"--labels: {data.name} has no labels; leave the option out, the dense network teaches alone"
            )
        options["labels"] = data.label_numbers(dense) if self.labels else None
        return options


@command
def heal(
    network: Network,
    data: LearnedFrom,
    artifact: Artifact,
    out_folder: Out,
    how: Healing,
    judged: Judged,
    timing: Figured,
    run: LongRun,
) -> None:
    """Train a compressed network to answer as the dense one does, without labels.

    Example: [bold]rankwise heal nets.py:build pictures/ --weights net.pth --artifact out/ -o healed/[/bold]

    A part of DATA is held out for validation: of all networks on the way, the one closest to the dense network is
    written, never one further away than yours. With [bold]--checkpoint FILE[/bold] a stopped run can be resumed with
    [bold]--resume[/bold] and otherwise the same options.
    """
    with run.output(writes=[out_folder]) as out:
        out.if_stopped(lambda: checkpoint_told(how.checkpoint, "blocks"))
        figured, judging = timing.timing(), judged.judging()
        from ..artifact import read
        from ..factorisation.check import check_loaded
        from ..running.seen import Seen
        from ..training import heal as train_network
        from .loading import load_networks, load_samples
        from .results import Result

        dense, small = load_networks(out, network, artifact, run.seed, folder=out_folder).values()
        source, measured_on = load_samples(out, data, dense, network.model, run.seed)
        network.warn(out)
        check_loaded(dense, small, measured_on.example(figured.batch))
        judging.check(dense, measured_on)
        if only_training_forecast(run, out, dense, source, how.epochs, how.limit, data.batch):
            return
        judge = judging.judged(out, dense, measured_on).measures[0] if judging.own or judging.name else None
        healed, healing = train_network(
            small,
            dense,
            source.inputs,
            **how.arguments(source, dense),
            classes_dim=judged.classes_dim,
            evaluate=judge,
            progress=progress_of(out, "distance"),
            batch=data.batch,
            seed=run.seed,
        )
        made = read(artifact)
        seen = {**made.seen, "training": Seen.of(source.inputs)}
        result = Result(out=out, folder=out_folder, seen=seen, data=measured_on, timing=figured, judging=judging)
        result = replace(result, plan=made.plan)
        result.save(healed)
        before = result.untimed({"dense": dense, "compressed": small})["compressed"]
        told = _told(healing, before)
        figures = result.measured(dense, healed, {"healing": told})
        result.show(figures, [*_gains(before, figures["compressed"]), result.judged().text, str(healing)])
        out.result("heal", {**result.document(figures, run.seed), "healing": told})


def progress_of(out: Output, measure: str) -> Callable[[str, Look], None]:
    """A function that reports every look at the validation samples: the stage, its share and time, the measure."""

    def progress(stage: str, look: Look) -> None:
        out.say(f"{stage} {look.share:4.0%}, {look.seconds:.0f} s: validation {measure} {look.held_out:.5g}")

    return progress


def _told(healing: HealReport, before: Mapping[str, Any]) -> dict[str, Any]:
    """For the artifact and `--json`."""
    told = {key: value for key, value in asdict(healing).items() if key != "stages"}
    return {**told, "seconds": healing.seconds, "figures_before": before}


def _gains(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Every figure that judges the network, before and after."""
    from ..evaluate import shown

    lines = []
    for name, about in now.get("measures", {}).items():
        key = "top1" if name == "accuracy" else name
        if key in was:
            lines.append(f"{about['title']}: {shown(was[key], about['unit'])} -> {shown(now[key], about['unit'])}")
    return lines
