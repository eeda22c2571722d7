"""Train with more parameters than the network has, cut to the ranks that stand out of noise, train what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..names import parted
from ..network.find import find
from ..plan import Plan
from ..planning.budgets import is_measured
from ..planning.request import Request
from ..ranks import Rule, get_rule
from ..running.calling import call
from ..running.copying import copied
from ..running.guards import unwrap
from ..running.outputs import Outputs, check_labels, described
from ..running.verbs import verb
from .augment import Augment, augmentation
from .constrain import Constrained
from .expand import expand_, merge_
from .factors import deviation
from .loop import Loop
from .options import Look, LoopOptions, LoopReport, with_limit
from .orthogonal import KINDS, KeptOrthogonal
from .samples import Prepare, Samples
from .technique import Technique
from .together import shared, together, world
from .truncation import truncate

Progress = Callable[[str, Look], None]
WEIGHT, RATE = 1e-2, 1e-3
CALIBRATION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class FactorTraining:
    """Further options of `train`.

    Attributes:
        tune_rate: learning rate of the second training, which starts from a trained network; a tenth of the first one's
            by default.
        calibration: samples whose outputs the cut layers are fitted to; 0 fits them to their weights.
        augment: random changes of a batch: "flip,crop" or a function.
        prepare: what is done to each batch, such as normalising bytes.
        checkpoint: file to resume from; the first training has its own beside it, ".expanded".
        resume: resume from there; rule, keep and calibration may change until the second training begins.
        progress: called with "expanded" or "small" and each look at the held-out samples.
    """

    tune_rate: float | None = None
    calibration: int = 512
    augment: str | Augment | None = None
    prepare: Prepare | None = None
    checkpoint: str | Path | None = None
    resume: bool = False
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What `train` did.

    Attributes:
        plan: formats and ranks of the small network.
        dense: the trained network before it was cut, its chains merged into layers.
        cut: the small network before its training.
        deviation: of the factors from orthonormal ones before the cut, see `deviation`.
        stages: "expanded" and "small": the two trainings, with all looks at the held-out samples.
    """

    plan: Plan
    dense: nn.Module
    cut: nn.Module
    deviation: float
    stages: dict[str, LoopReport]

    @property
    def losses(self) -> dict[str, float]:
        """Held-out loss at the start, after training, after the cut, and at the end."""
        wide, small = self.stages["expanded"], self.stages["small"]
        return {"start": wide.before, "trained": wide.after, "cut": small.before, "end": small.after}

    @property
    def seconds(self) -> float:
        """Wall clock of both trainings."""
        return sum(stage.seconds for stage in self.stages.values())

    def __str__(self) -> str:
        losses = ", ".join(f"{name} {loss:.4g}" for name, loss in self.losses.items())
        return (
            f"validation loss: {losses}\n{self.plan.planned['params']:,} of {self.plan.dense['params']:,} parameters, "
            f"factors {self.deviation:.2g} from orthonormal when they were cut, {self.seconds:.0f} s"
        )


@verb
def train(
    model: nn.Module,
    data: Any,
    labels: Tensor | Sequence[int] | None = None,
    *,
    expand: str = "tucker2",
    only: str | Iterable[str] = "*",
    orthogonal: str = f"soft:{WEIGHT:g}",
    schedule: str = "constant",
    rule: str | Rule = "evbmf",
    keep: Mapping[str, float] | None = None,
    tune: float = 0.25,
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy,
    **options: Any,
) -> tuple[nn.Module, TrainReport]:
    """Expand, train with orthogonal factors, choose ranks, cut, and train again: from any weights, also from new ones.

        min  E loss(f(x), y) + lambda sum_U p(U)      over the factors of `expand_`; then  r = rule(merged weights)

    Args:
        model: the network; left as it was.
        data: samples as for `Samples.of`: a batch, batches, or a map-style Dataset of inputs.
        labels: one for each sample.
        expand: "tucker2" or "svd", see `expand_`.
        only: patterns of the layers that are expanded; all others stay dense.
        orthogonal: "soft", "double" or "srip" with the weight of the penalty after a colon; "hard" for `constrain_`,
            "none" for factors that are left to themselves.
        schedule: "constant" or "cosine" for the weight of the penalty.
        rule: how ranks are chosen, see `truncate`.
        keep: budget for the small network, see `truncate`.
        tune: share of the epochs or minutes for the second training, between 0 and 1.
        loss: of outputs and labels, a mean over the batch.
        **options: further ones, of `FactorTraining` (tune_rate, calibration, augment, prepare, checkpoint, resume,
            progress) and of `LoopOptions`: epochs and minutes of both trainings together, 10 epochs if no limit is
            given; rate, 1e-3 by default, of the first; statistics, here True by default; batch, optimiser, held_out,
            patience, amp, seed, ...

    Returns:
        The small network, of the same class, and a report.

    Raises:
        TypeError: for an argument that does not exist.
        ValueError: for arguments that do not fit, a budget that cannot be met, training that diverges, or a checkpoint
            of another run.
        OSError: if a checkpoint cannot be written.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 16)
        >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> small, report = train(model, x, x[:, :4].argmax(1), keep={"params": 0.6}, epochs=4)
        >>> report.plan.planned["params"] <= 0.6 * report.plan.dense["params"]
        True
    """
    if labels is None:
        raise ValueError("training needs labels, one for each sample; rankwise.heal learns without")
    how: FactorTraining
    wanted: LoopOptions
    how, wanted = parted(with_limit({"rate": RATE, "statistics": True, **options}), FactorTraining, LoopOptions)
    augment = how.augment
    if isinstance(augment, str) and "mixup" in augment:
        raise ValueError(f"augment {augment!r} mixes pictures, whose labels cannot be mixed; leave out mixup")
    if not 0 < tune < 1:
        raise ValueError(f"tune is {tune}; it is a share of the training between 0 and 1")
    rule = get_rule(rule)
    Request(rule=rule, keep=keep).check(None)
    if is_measured(keep):
        raise ValueError("a network is cut by counts: keep params, macs or bytes, and plan for latency afterwards")
    kind, weight = parse_orthogonal(orthogonal)
    samples, change = Samples.of(data, labels=labels, prepare=how.prepare), augmentation(augment)
    tuning = replace(wanted.part(tune), rate=wanted.rate / 10 if how.tune_rate is None else how.tune_rate)
    numbers, _ = samples.split(wanted.held_out, wanted.seed)
    example = samples.batch(numbers[:1])[0]
    patterns = [only] if isinstance(only, str) else list(only)
    wide = copied(unwrap(model))
    expand_(wide, find(wide, example), expand, patterns)
    device = next(wide.parameters()).device
    if loss is cross_entropy and samples.labels is not None and not samples.labels.is_floating_point():
        check_labels(samples.labels, Outputs.of(wide, example, samples.labels[numbers[:1]], scores=True).classes)

    techniques = (
        [Constrained()] if kind == "hard" else [KeptOrthogonal(kind, weight, schedule)] if kind in KINDS else []
    )

    def loop(
        network: nn.Module,
        stage: str,
        options: LoopOptions,
        file: Path | None,
        going_on: bool,
        run: Mapping[str, Any],
        techniques: Sequence[Technique] = (),
    ) -> Loop:
        def task(inputs: Any, labels: Tensor | None) -> Tensor:
            assert labels is not None
            outputs = call(network, inputs)
            try:
                return loss(outputs, labels.to(device))
            except torch.cuda.OutOfMemoryError:
                raise
            except (TypeError, AttributeError, IndexError, RuntimeError) as error:
                raise ValueError(
                    f"the loss cannot be computed from outputs ({described(outputs)}) and labels "
                    f"({described(labels)}): {error}; give a loss= of your own"
                ) from error

        return Loop(
            network,
            task,
            samples,
            options,
            augment=change,
            techniques=techniques,
            checkpoint=file,
            resume=going_on,
            run={"stage": stage, "augment": str(augment) if augment else None, **run},
            progress=None if progress is None else lambda look: progress(stage, look),
        )

    resume, calibration, progress = how.resume, how.calibration, how.progress
    last = None if how.checkpoint is None else Path(how.checkpoint)
    first = None if last is None else last.with_name(f"{last.name}.expanded")
    identity = {"expand": expand, "only": patterns, "orthogonal": orthogonal, "schedule": schedule, "tune": tune}
    with together(device):
        training = loop(wide, "expanded", wanted.part(1 - tune), first, resume, identity, techniques)
        stages = {"expanded": training.run()}
        _agreed(wide)
        calibrating = [samples.batch(part)[0] for part in numbers[:calibration].split(CALIBRATION_BATCH)]
        small, plan = truncate(wide, example, rule=rule, keep=keep, data=calibrating if calibration else None)
        going_on = resume and last is not None and bool(shared(last.exists(), device))
        identity |= {"rule": str(rule), "keep": dict(keep or {}), "calibration": calibration}
        cut = copied(small)
        stages["small"] = loop(small, "small", tuning, last, going_on, identity).run()
    return small, TrainReport(plan=plan, deviation=deviation(wide), dense=merge_(wide), cut=cut, stages=stages)


def parse_orthogonal(text: str) -> tuple[str, float]:
    """Kind and weight of "soft:0.01", "srip", "hard" or "none".

    Raises:
        ValueError: for anything else.

    Example:
        >>> parse_orthogonal("srip:0.1"), parse_orthogonal("hard")
        (('srip', 0.1), ('hard', 0.0))
    """
    kind, colon, number = text.partition(":")
    if kind in ("hard", "none") and not colon:
        return kind, 0.0
    try:
        weight = float(number) if colon else WEIGHT
    except ValueError:
        weight = -1.0
    if kind not in KINDS or not 0 <= weight < float("inf"):
        raise ValueError(
            f"orthogonal {text!r} is neither hard nor none nor one of {', '.join(KINDS)} with a weight, such as "
            "soft:0.01"
        )
    return kind, weight


def _agreed(model: nn.Module) -> None:
    """Take the first process's values: those of batch norms differ, and all must choose the same ranks."""
    if world() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)
