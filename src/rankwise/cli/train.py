"""`rankwise train`: train with orthogonal factors of full rank, cut to the ranks above the noise, train on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .command import command
from .forecast import only_training_forecast
from .heal import Checkpoint, Epochs, progress_of
from .options.base import LongRun, Out, training
from .options.choosing import Ignore, Include, Keep, Rule
from .options.data import LearnedFrom, Network
from .options.measuring import Figured, Judged
from .output import Output
from .parsing import parse_budgets, parse_rule
from .stopping import checkpoint_told

if TYPE_CHECKING:
    from torch import nn

    from ..figures.measured import Figures
    from ..inputs.data import Data
    from ..training import TrainReport
    from .results import Result


OWN = ("expand", "orthogonal", "schedule")  # options of orthogonal factors alone


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which layers are cut, and to which ranks."""

    rule: Rule = "evbmf"
    keep: Keep = None
    ignore: Ignore = None
    include: Include = None

    def only(self, network: Any, data: Data) -> list[str]:
        """Names of the layers to expand."""
        from ..planning.constraints import Constraints

        sites = _sites(network, data)
        free = Constraints(include=self.include or ("*",), ignore=self.ignore or ()).free(sites)
        return [name for name in sites if name in free]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the network is trained, in the names of `rankwise.training.train`."""

    expand: Annotated[
        str,
        training(
            "--expand FORMAT",
            "Chains of full rank that layers are trained as: tucker2 (linear and 1 x 1 layers as svd), or svd.",
        ),
    ] = "tucker2"
    orthogonal: Annotated[
        str,
        training(
            "--orthogonal KIND:WEIGHT",
            "Penalty that keeps factors orthonormal: soft, double or srip with its weight; hard; none.",
        ),
    ] = "soft:0.01"
    schedule: Annotated[str, training("--schedule NAME", "Schedule of the penalty's weight: constant, cosine.")] = (
        "constant"
    )
    epochs: Epochs = None
    minutes: Annotated[float | None, training("--minutes N", "Time limit; 10 epochs without a limit.")] = None
    tune: Annotated[float, training("--tune SHARE", "Share of the training that follows the cut.")] = 0.25
    calibration: Annotated[
        int,
        training(
            "--calibration N", "Samples whose outputs the cut layers are fitted to; 0 fits them to their weights."
        ),
    ] = 512
    augment: Annotated[str | None, training("--augment STEPS", "Random changes of pictures: flip,crop or one.")] = None
    rate: Annotated[float, training("--rate R", "Largest learning rate.")] = 1e-3
    tune_rate: Annotated[
        float | None, training("--tune-rate R", "Largest learning rate after the cut; a tenth of --rate by default.")
    ] = None
    optimiser: Annotated[str, training("--optimiser NAME", "adamw, or sgd with momentum.")] = "adamw"
    patience: Annotated[
        int | None, training("--patience N", "Stop a training after N looks at the held-out samples without a gain.")
    ] = None
    checkpoint: Checkpoint = None


TechniqueName = Annotated[
    str | None,
    training(
        "--technique NAME",
        "Technique in the place of orthogonal factors, with settings after a colon: maestro:strength=0.001, flexrank, "
        "penalty:measure=effective_rank, soft_threshold, rank_pruning, learning_compression, admm:format=tt, "
        "dynamical, svd_training, warm_up, subspace:dim=40.",
    ),
]
Resume = Annotated[bool, training("--resume", "Resume from --checkpoint; begin where there is none yet.")]
Device = Annotated[str, training("--device NAME", "cpu, cuda, mps; auto: cuda if there is.")]


@command
def train(
    network: Network,
    data: LearnedFrom,
    out_folder: Out,
    how: Training,
    ranks: Ranks,
    judged: Judged,
    timing: Figured,
    run: LongRun,
    technique: TechniqueName = None,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Train a network for low rank, cut it to low rank, and train what is left; DATA needs labels.

    Example: [bold]rankwise train nets.py:build pictures/ --size 32 --orthogonal soft:0.1 --epochs 20 -o out/[/bold]

    Layers are chains of full rank with orthogonal factors, or learn by a [bold]--technique[/bold], from
    [bold]--weights FILE[/bold], or from random weights by [bold]--seed[/bold]. Ranks are those above the noise (EVBMF),
    scaled to [bold]--keep[/bold] if it is given. With [bold]--checkpoint FILE --resume[/bold]
    the same command resumes where it was stopped and ends with the same network; torchrun runs it in several processes.
    """
    with run.output(writes=[out_folder]) as out:
        out.if_stopped(lambda: checkpoint_told(how.checkpoint, "expanded"))
        figured, judging = timing.timing(), judged.judging()
        check_technique(technique, how)
        from ..planning.wishes import Asked, check_wishes
        from ..training.together import rank, together
        from .loading import load_networks, load_samples
        from .results import Result

        model = load_networks(out, network, None, run.seed, folder=out_folder)["dense"].to(_device(device))
        check_wishes(model, Asked.of(include=ranks.include or ("*",), ignore=ranks.ignore or ()))
        source, measured_on = load_samples(out, data, model, network.model, run.seed)
        measured_on.example(figured.batch)
        judging.check(model, measured_on)
        if not source.labelled:
            raise ValueError(f"{source.name} has no labels, which training needs; rankwise heal learns without")
        if only_training_forecast(run, out, model, source, how.epochs, how.minutes, data.batch):
            return
        inputs, labels = list(source.inputs), source.label_numbers(model)
        with together(next(model.parameters()).device):
            small, report = _trained(technique)(
                model,
                inputs,
                labels,
                **_settings(how, technique),
                only=ranks.only(model, measured_on),
                rule=parse_rule(ranks.rule or "knapsack"),
                keep=parse_budgets(ranks.keep),
                resume=resume and _begun(out, how.checkpoint),
                progress=progress_of(out, "loss"),
                batch=data.batch,
                seed=run.seed,
            )
            first = rank() == 0
        if first:
            seen = _seen(inputs)
            result = Result(out=out, folder=out_folder, seen=seen, data=measured_on, timing=figured, judging=judging)
            _finish(result, small.cpu(), report, run.seed)


def _seen(inputs: list[Any]) -> dict[str, Any]:
    """What the network has seen; calibration takes samples of the training."""
    from ..running.seen import Seen

    return {"calibration": Seen.of([]), "training": Seen.of(inputs)}


def check_technique(technique: str | None, how: Training) -> None:
    """Refuse an unknown technique, and options that a technique does not have; without PyTorch."""
    from ..names import TECHNIQUES, check_name

    if technique is None:
        return
    check_name("technique", technique.partition(":")[0], TECHNIQUES, "--technique: ")
    plain = Training()
    if changed := [f"--{name}" for name in OWN if getattr(how, name) != getattr(plain, name)]:
        raise ValueError(f"{', '.join(changed)} belong to orthogonal factors; drop them beside --technique {technique}")


def _trained(technique: str | None) -> Any:
    """The function that trains."""
    if technique is None:
        from ..training import train

        return train
    from functools import partial

    from ..techniques import train_low_rank

    return partial(train_low_rank, technique=technique)


def _settings(how: Training, technique: str | None) -> dict[str, Any]:
    return {name: value for name, value in vars(how).items() if technique is None or name not in OWN}


def _finish(result: Result, small: nn.Module, report: TrainReport, seed: int) -> None:
    """Write the network, measure it beside those it came from, and show the result."""
    from .tables import plan_table

    out, (dense, cut) = result.out, (each.cpu() for each in (report.dense, report.cut))
    result = replace(result, plan=report.plan)
    result.save(small)
    before = result.untimed({"dense": dense, "cut": cut})
    told = _told(report, before)
    figures = result.measured(dense, small, {"training": told})
    out.show(plan_table(report.plan, _sites(dense, result.data), out.console.width))
    out.say("")
    lines = [result.judged().text, str(report)]
    if "top1" in before["cut"]:
        parts = (before["dense"], before["cut"], figures["compressed"])
        words = zip(("trained", "cut", "trained on"), parts, strict=True)
        lines.insert(0, "top-1 accuracy: " + ", ".join(f"{word} {part['top1']:.2f} %" for word, part in words))
    result.show(figures, lines)
    out.result("train", {**result.document(figures, seed), "plan": report.plan.to_dict(), "training": told})


def _sites(network: Any, data: Data) -> Any:
    from ..network.find import find

    return find(network, data.example())


def _begun(out: Output, checkpoint: Path | None) -> bool:
    """Whether there is a checkpoint to resume from."""
    if checkpoint is None:
        raise ValueError("--resume needs a file to resume from: --checkpoint FILE")
    there = checkpoint.with_name(f"{checkpoint.name}.expanded").exists()
    if not there:
        out.note(f"there is no checkpoint {checkpoint} yet: starting from the beginning")
    return there


def _device(name: str) -> str:
    import os

    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":  # torchrun numbers the processes of a machine
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
