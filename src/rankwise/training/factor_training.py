"""Train with more parameters than the network has, cut to the ranks above the noise, train what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from .augment import Augment, augmentation, named
from .constrain import Constrained
from .expand import expand_, merge_
from .factors import deviation
from .loop import Loop
from .options import LoopOptions, LoopReport, with_limit
from .orthogonal import KINDS, KeptOrthogonal
from .samples import Prepare, Samples
from .stages import Stages
from .technique import Technique
from .together import together, world
from .truncation import truncate

WEIGHT, RATE = 1e-2, 1e-3
CALIBRATION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class FactorTraining(Stages):
    """Further options of `train`. On resuming, rule, keep and calibration may change until the second training begins.

    Attributes:
        tune_rate: learning rate of the second training, which starts from a trained network; by default a tenth of the
            first one's.
        calibration: samples whose outputs the cut layers are fitted to; 0 fits them to their weights.
        augment: random changes of a batch: "flip,crop" or a function.
        prepare: what is done to each batch, such as normalising bytes.
    """

    tune_rate: float | None = None
    calibration: int = 512
    augment: str | Augment | None = None
    prepare: Prepare | None = None


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What `train` did.

    Attributes:
        plan: formats and ranks of the small network.
        dense: the trained network before the cut, its chains merged into layers.
        cut: the small network before its training.
        deviation: distance of the factors from orthonormal ones before the cut, see `deviation`; None where there are
            no factors yet.
        stages: the two trainings, "expanded" and "small".
    """

    plan: Plan
    dense: nn.Module
    cut: nn.Module
    deviation: float | None
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
        far = "" if self.deviation is None else f"factors {self.deviation:.2g} from orthonormal when they were cut, "
        return (
            f"validation loss: {losses}\n{self.plan.planned['params']:,} of {self.plan.dense['params']:,} parameters, "
            f"{far}{self.seconds:.0f} s"
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
    """Expand, train with orthogonal factors, choose ranks, cut, and train again; from any weights, trained or random.

        min  E loss(f(x), y) + lambda sum_U p(U)      over the factors of `expand_`; then  r = rule(merged weights)

    Args:
        model: the network; it is not changed.
        data: samples as for `Samples.of`: a batch, batches, or a map-style Dataset of inputs.
        labels: one for each sample.
        expand: "tucker2" or "svd", see `expand_`.
        only: patterns of the layers to expand; all others stay dense.
        orthogonal: "soft", "double" or "srip" with the weight of the penalty after a colon; "hard" for `constrain_`;
            "none" for unconstrained factors.
        schedule: "constant" or "cosine" for the weight of the penalty.
        rule: how ranks are chosen, see `truncate`.
        keep: budget for the small network, see `truncate`.
        tune: share of the epochs or minutes for the second training, between 0 and 1.
        loss: function of outputs and labels, a mean over the batch.
        **options: of `FactorTraining` (tune_rate, calibration, augment, prepare, checkpoint, resume, progress) and of
            `LoopOptions`: epochs and minutes of both trainings together, by default 10 epochs; rate of the first, by
            default 1e-3; statistics, by default True; batch, optimiser, held_out, patience, amp, seed, ...

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
    change = augmentation(how.augment, labelled=True)
    if not 0 < tune < 1:
        raise ValueError(f"tune is {tune}; it is a share of the training between 0 and 1")
    rule = get_rule(rule)
    Request(rule=rule, keep=keep).check(None)
    if is_measured(keep):
        raise ValueError("a network is cut by counts: keep params, macs or bytes, and plan for latency afterwards")
    kind, weight = parse_orthogonal(orthogonal)
    techniques: list[Technique] = [KeptOrthogonal(kind, weight, schedule)] if kind in KINDS else []
    if kind == "hard":
        techniques = [Constrained()]
    samples = Samples.of(data, labels=labels, prepare=how.prepare)
    tuning = replace(wanted.part(tune), rate=wanted.rate / 10 if how.tune_rate is None else how.tune_rate)
    numbers, _ = samples.split(wanted.held_out, wanted.seed)
    example = samples.batch(numbers[:1])[0]
    patterns = [only] if isinstance(only, str) else list(only)
    wide = copied(unwrap(model))
    expand_(wide, find(wide, example), expand, patterns)
    device = next(wide.parameters()).device
    if loss is cross_entropy and samples.labels is not None and not samples.labels.is_floating_point():
        check_labels(samples.labels, Outputs.of(wide, example, samples.labels[numbers[:1]], scores=True).classes)

    run: dict[str, Any] = {"augment": named(how.augment), "expand": expand, "only": patterns, "tune": tune}
    run |= {"orthogonal": orthogonal, "schedule": schedule}
    with together(device):
        aim, keeping = partial(task, wide, loss, device), how.keeping("expanded", run, device, "first")
        first = Loop(wide, aim, samples, wanted.part(1 - tune), augment=change, techniques=techniques, **keeping).run()
        agree_(wide)
        calibrating = [samples.batch(part)[0] for part in numbers[: how.calibration].split(CALIBRATION_BATCH)]
        small, plan = truncate(wide, example, rule=rule, keep=keep, data=calibrating if how.calibration else None)
        cut = copied(small)
        run |= {"rule": str(rule), "keep": dict(keep or {}), "calibration": how.calibration}
        aim, keeping = partial(task, small, loss, device), how.keeping("small", run, device, "second")
        second = Loop(small, aim, samples, tuning, augment=change, **keeping).run()
    stages = {"expanded": first, "small": second}
    return small, TrainReport(plan=plan, deviation=deviation(wide), dense=merge_(wide), cut=cut, stages=stages)


def task(
    network: nn.Module,
    loss: Callable[[Any, Tensor], Tensor],
    device: torch.device,
    inputs: Any,
    labels: Tensor | None,
) -> Tensor:
    """The loss of the network on a batch; a ValueError if it does not fit the outputs."""
    assert labels is not None
    outputs = call(network, inputs)
    try:
        return loss(outputs, labels.to(device))
    except torch.cuda.OutOfMemoryError:
        raise
    except (TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"the loss cannot be computed from outputs ({described(outputs)}) and labels ({described(labels)}): "
            f"{error}; give a loss= of your own"
        ) from error


def parse_orthogonal(text: str) -> tuple[str, float]:
    """Kind and weight of "soft:0.01", "srip", "hard" or "none".

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
            f"orthogonal {text!r} is not hard, none, or one of {', '.join(KINDS)} with a weight, such as soft:0.01"
        )
    return kind, weight


def agree_(model: nn.Module) -> None:
    """Copy the first process's values to all: their batch norms differ, yet all must choose the same ranks."""
    if world() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)
