"""Heal a factorised network: train it to answer as its dense original does on unlabelled samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluate.measures import Judge, Measure
from ..files import digest
from ..names import parted
from ..running.calling import call
from ..running.copying import copied
from ..running.guards import unwrap
from ..running.outputs import check_labels
from ..running.verbs import verb
from .augment import Augment, augmentation, named
from .balance import balance_
from .blocks import BlockReconstruction
from .distil import Distillation
from .loop import Loop
from .modes import trainable
from .options import LoopOptions, LoopReport, with_limit
from .samples import Prepare, Samples
from .stages import Stages
from .together import together

BLOCKS = 0.2  # share of the time for block-wise reconstruction, if it is asked for
FEW = 8  # samples that decide what kind of outputs the network has


@dataclass(frozen=True, kw_only=True)
class Healing(Stages):
    """Further options of `heal`.

    Attributes:
        logits: whether outputs are scores of classes; by default what `evaluate.Outputs` decides.
        classes_dim: the dimension of the classes, if it cannot be inferred.
        temperature: softens the answers.
        features: modules whose outputs shall agree in the second stage as well.
    """

    logits: bool | None = None
    classes_dim: int | None = None
    temperature: float = 2.0
    features: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class HealReport:
    """What `heal` did.

    Attributes:
        before, after: distance from the dense network on held-out samples: divergence in nats, relative squared error
            if outputs are not scores, or the loss by your own measure. It is never larger after healing.
        judge: which of these.
        stages: "distillation", and before it "blocks" if asked for.
        samples: number of samples trained on.
        held_out: number of samples that judged.
        parameters: number of trained parameters.
    """

    before: float
    after: float
    stages: dict[str, LoopReport]
    samples: int
    held_out: int
    parameters: int
    judge: str

    @property
    def seconds(self) -> float:
        """Wall clock of all stages."""
        return sum(stage.seconds for stage in self.stages.values())

    def __str__(self) -> str:
        steps = ", ".join(f"{stage.steps} steps of {name}" for name, stage in self.stages.items())
        return (
            f"distance from the dense network on {self.held_out} validation samples {self.before:.4g} -> "
            f"{self.after:.4g} ({self.judge})\n{steps} on {self.samples} samples in {self.seconds:.0f} s"
        )


@verb
def heal(
    small: nn.Module,
    dense: nn.Module,
    data: Any,
    *,
    labels: Tensor | Sequence[int] | None = None,
    augment: str | Augment | None = None,
    prepare: Prepare | None = None,
    blocks: bool | float | Sequence[str] = False,
    train: str = "factors",
    evaluate: Measure | Judge | None = None,
    **options: Any,
) -> tuple[nn.Module, HealReport]:
    """Train a factorised network to answer as the dense one does; no labels are needed.

    Balance the factors; if asked for, train all blocks side by side on the dense network's activations; then train
    everything on its answers. The state closest to the dense network on held-out samples is returned; if training did
    not help, that is the start.

    Args:
        small: the factorised network; it is not changed.
        dense: the network it was made from; it is not changed.
        data: samples as for `Samples.of`: a batch, batches, or a map-style Dataset of inputs.
        labels: class numbers, one for each sample; without them only the dense network teaches.
        augment: random changes of a batch: "flip,crop,mixup" or some of these for pictures, or a function.
        prepare: what is done to each batch, such as normalising bytes.
        blocks: whether blocks learn by themselves first; the share of the time for it, or the names of the blocks.
        train: "factors" (with biases and normalisations) or "all" parameters.
        evaluate: judges on the held-out samples instead of the distance: a function `(model, batches) -> number`,
            higher is better unless its attribute `higher_is_better` is False, or an `evaluate.Measure`.
        **options: of `Healing` (logits, classes_dim, temperature, features, checkpoint, resume, progress) and of
            `LoopOptions`: epochs, minutes (10 epochs if neither is given), batch, optimiser, rate, clip, held_out,
            patience, seed, ...

    Returns:
        The healed network, of the same class, and a report.

    Raises:
        TypeError: for an argument that does not exist.
        ValueError: for arguments that do not fit, training that diverges, or a checkpoint of another run.
        OSError: if a checkpoint cannot be written.

    Example:
        >>> import rankwise as rw
        >>> dense = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> batches = [torch.randn(64, 16) for _ in range(4)]
        >>> small, _ = rw.compress(dense, batches, keep={"params": 0.5})
        >>> healed, report = rw.heal(small, dense, batches, epochs=2)
        >>> report.after <= report.before
        True
    """
    small, dense = unwrap(small), unwrap(dense)
    how: Healing
    wanted: LoopOptions
    how, wanted = parted(with_limit(options), Healing, LoopOptions)
    change = augmentation(augment, labelled=labels is not None)
    samples = Samples.of(data, labels=labels, prepare=prepare)
    shares = _shares(blocks)
    run: dict[str, Any] = {
        "networks": digest([dict(network.state_dict()) for network in (small, dense)]),
        "train": train,
        "augment": named(augment),
    }
    healed = balance_(copied(small))
    parameters = trainable(healed, train)
    judge, distil, is_scores = _teachers(dense, how, samples, labels is not None)
    own = None if evaluate is None else _Lost(evaluate, dense)
    losses: dict[str, Callable[[Any, Tensor | None], Tensor]] = {}
    if shares["blocks"]:
        names = "auto" if isinstance(blocks, (bool, float, int)) else blocks
        reconstruction = BlockReconstruction(dense, healed, names)
        run["blocks"] = reconstruction.blocks
        losses["blocks"] = lambda inputs, _: reconstruction(inputs)
    losses["distillation"] = lambda inputs, labels: distil.of(healed, inputs, labels)
    run["distillation"] = [how.temperature, is_scores, list(how.features), labels is not None]
    if own is not None:
        run["judge"] = own.measure.key

    reports: dict[str, LoopReport] = {}
    with together(device := parameters[0].device):
        for stage, loss in losses.items():
            place = "first" if stage == "blocks" else "second" if reports else "only"
            loop = Loop(
                healed,
                loss,
                samples,
                wanted.part(shares[stage]),
                judge=lambda inputs, _: judge(inputs, call(healed, inputs)),
                evaluate=own,
                parameters=parameters,
                augment=change,
                **how.keeping(stage, run, device, place),
            )
            reports[stage] = loop.run()
    first, last = next(iter(reports.values())), reports["distillation"]
    return healed, HealReport(
        before=first.before,
        after=last.after,
        stages=reports,
        samples=len(loop.training),
        held_out=len(loop.held_out),
        parameters=sum(parameter.numel() for parameter in parameters),
        judge=own.name if own else "divergence in nats" if is_scores else "relative squared error",
    )


def _teachers(
    dense: nn.Module, how: Healing, samples: Samples, labelled: bool
) -> tuple[Distillation, Distillation, bool]:
    """What judges and what teaches, and whether outputs are scores; a ValueError for labels that do not fit them."""
    teaching = partial(Distillation, dense, logits=how.logits, classes_dim=how.classes_dim)
    judge, distil = teaching(temperature=1.0), teaching(temperature=how.temperature, features=how.features)
    few = samples.batch(torch.arange(min(len(samples), FEW)))
    is_scores = all(each.outputs(*few).has_scores for each in (judge, distil))
    if labelled and not is_scores:
        raise ValueError(f"labels teach only scores of classes; the outputs are {judge.outputs(*few)}")
    if samples.labels is not None:
        check_labels(samples.labels, judge.outputs(*few).classes)
    return judge, distil, is_scores


class _Lost:
    """What a network loses by a measure, beside the dense one on the same batches."""

    def __init__(self, measure: Measure | Judge, dense: nn.Module) -> None:
        self.measure = measure if isinstance(measure, Measure) else Measure.own(measure)
        self.dense = dense
        self.reference: float | None = None

    def __call__(self, model: nn.Module, batches: list[Any]) -> float:
        if self.reference is None:
            self.reference = self.measure.reference(self.dense, batches)
        return self.measure.lost(self.measure(model, self.dense, batches), self.reference)

    @property
    def name(self) -> str:
        """For people."""
        return f"lost {self.measure.title}, of which {self.measure.direction}"


def _shares(blocks: bool | float | Sequence[str]) -> dict[str, float]:
    share = float(blocks) if isinstance(blocks, float) else BLOCKS * bool(blocks)
    if not 0 <= share < 1:
        raise ValueError(f"blocks is {blocks}; a share of the time is at least 0 and below 1")
    return {"blocks": share, "distillation": 1 - share}
