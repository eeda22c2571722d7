"""`rankwise unified`: search ranks by gradient descent, and train what they make."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .command import command
from .forecast import only_training_forecast
from .heal import Epochs, progress_of
from .options.base import LongRun, Out, training
from .options.choosing import Keep
from .options.data import LearnedFrom, Network
from .options.measuring import Figured, Judged
from .parsing import parse_budgets, parse_formats

if TYPE_CHECKING:
    from ..figures.measured import Figures
    from ..inputs.data import Data
    from ..unified import UnifiedReport


@dataclass(frozen=True, kw_only=True)
class Searching:
    """How ranks are searched and the result is trained, in the names of `rankwise.unified.unified`."""

    formats: Annotated[
        str, training("--formats NAME,NAME", "Formats to choose from; cp3 and tt are the published ones.")
    ] = "cp3"

    learn: Annotated[
        str,
        training("--learn WHAT", "What ranks learn from: loss of the network, or distance of its weights, no data."),
    ] = "loss"
    aim: Annotated[
        str, training("--aim NAME", "budget: a loss within the budget; product: the published loss times the cost.")
    ] = "budget"
    rounds: Annotated[int, training("--rounds N", "Rounds of the search, each finer than the one before.")] = 2
    candidates: Annotated[int, training("--candidates N", "Options of each layer at a time.")] = 6
    search: Annotated[float, training("--search SHARE", "Share of the training for the search.")] = 0.5
    dissimilarity: Annotated[
        float, training("--dissimilarity WEIGHT", "Weight of the distance from the dense layers in the training.")
    ] = 0.5
    labels: Annotated[
        bool, training("--labels", "Learn from the labels of DATA; else from the network's own answers.")
    ] = False
    epochs: Epochs = None
    minutes: Annotated[float | None, training("--minutes N", "Time limit; 10 epochs without a limit.")] = None
    augment: Annotated[str | None, training("--augment STEPS", "Random changes of pictures: flip,crop or one.")] = None
    rate: Annotated[float, training("--rate R", "Largest learning rate, of AdamW.")] = 5e-4
    checkpoint: Annotated[
        Path | None, training("--checkpoint FILE", "Checkpoint, updated throughout the run, to resume from.")
    ] = None
    resume: Annotated[bool, training("--resume", "Resume from --checkpoint.")] = False

    def arguments(self, data: Data, model: Any) -> dict[str, Any]:
        """Keyword arguments of `rankwise.unified.unified`."""
        if self.labels and not data.labelled:
            raise ValueError(f"--labels: {data.name} has no labels; leave the option out: the network teaches itself")
        labels = data.label_numbers(model) if self.labels else None
        return {**vars(self), "formats": parse_formats(self.formats), "labels": labels}


@command
def unified(
    network: Network,
    data: LearnedFrom,
    out_folder: Out,
    keep: Keep,
    how: Searching,
    judged: Judged,
    timing: Figured,
    run: LongRun,
) -> None:
    """Search formats and ranks by gradient descent on a trained network, factorise it, and train near the dense layers.

    Example: [bold]rankwise unified nets.py:build pictures/ --weights net.pth --keep macs=0.3 --epochs 20 -o out/[/bold]

    The unified framework of Aghababaei-Harandi and Amini. [bold]rankwise compress[/bold] takes seconds and is seldom
    worse; this command trains.
    """
    with run.output(writes=[out_folder]) as out:
        figured, judging, budgets = timing.timing(), judged.judging(), parse_budgets(keep)
        from ..running.seen import Seen
        from ..unified import unified as search_and_train
        from .loading import load_networks, load_samples
        from .results import Result

        model = load_networks(out, network, None, run.seed, folder=out_folder)["dense"]
        source, measured_on = load_samples(out, data, model, network.model, run.seed)
        network.warn(out)
        measured_on.example(figured.batch)
        judging.check(model, measured_on)
        if only_training_forecast(run, out, model, source, how.epochs, how.minutes, data.batch):
            return
        small, report = search_and_train(
            model,
            source.inputs,
            **how.arguments(source, model),
            keep=budgets or {},
            progress=progress_of(out, "loss"),
            batch=data.batch,
            seed=run.seed,
        )
        result = Result(
            out=out,
            folder=out_folder,
            plan=report.plan,
            seen={"training": Seen.of(source.inputs)},
            data=measured_on,
            timing=figured,
            judging=judging,
        )
        result.save(small)
        told = _told(report, result.untimed({"cut": report.cut})["cut"])
        figures = result.measured(model, small, {"unified": told})
        result.show(figures, [result.judged().text, str(report)])
        out.result("unified", {**result.document(figures, run.seed), "plan": report.plan.to_dict(), "unified": told})


def _told(report: UnifiedReport, cut: Figures) -> dict[str, Any]:
    """For the artifact and `--json`."""
    parts = {"tuned": report.tuned, **{f"search {n}": each for n, each in enumerate(report.rounds, 1)}}
    stages = {name: {k: v for k, v in asdict(part).items() if k != "looks"} for name, part in parts.items()}
    return {"seconds": report.seconds, "stages": stages, "figures_before": cut}
