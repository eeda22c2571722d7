"""Which answers of a network changed: by class or by output, and the samples that changed most."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ..running.calling import call
from ..running.guards import unwrap
from ..running.outputs import Outputs, tensor_at
from ..running.pristine import pristine
from ..running.verbs import verb

SAMPLES = 8
ROWS = 20


@dataclass(frozen=True, kw_only=True)
class ChangedClass:
    """A class by the dense network's answers.

    Attributes:
        index: number of the class.
        answers: how often the dense network gives it.
        changed: how often the compressed network then gives another one.
        labels: how often it is the label; 0 without labels.
        right: how often each network is right there, dense first.
    """

    index: int
    answers: int
    changed: int
    labels: int = 0
    right: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class ChangedSample:
    """A sample that is answered otherwise; `distance` is the divergence of the answers in nats."""

    index: int
    before: int
    after: int
    label: int | None
    distance: float
    inputs: Any


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What changed between two networks.

    Attributes:
        total, changed: answers, and those that changed; 0 for outputs that are no choice.
        classes: the classes whose answers changed most often, at most 20.
        outputs: for values, number of an output and its relative error, the largest first, at most 20.
        samples: those that changed most, at most 8, if every sample has one answer.
    """

    total: int = 0
    changed: int = 0
    classes: tuple[ChangedClass, ...] = ()
    outputs: tuple[tuple[int, float], ...] = ()
    samples: tuple[ChangedSample, ...] = ()


@verb
def changes(small: nn.Module, dense: nn.Module, pairs: Iterable[tuple[Any, Any]], outputs: Outputs) -> Changes:
    """Find what changed between two networks.

    Args:
        small: the compressed network.
        dense: the network whose answers count as right.
        pairs: batches of inputs and labels; None for no labels.
        outputs: what the networks return.

    Example:
        >>> dense, small = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> _ = dense.weight.data.copy_(torch.eye(2)), small.weight.data.copy_(torch.eye(2).flip(0))
        >>> found = changes(small, dense, [(torch.eye(2), None)], Outputs.of(dense, torch.eye(2)))
        >>> found.changed, found.total, [each.index for each in found.samples]
        (2, 2, [0, 1])
    """
    dense, small = unwrap(dense), unwrap(small)
    counts = _Choices(outputs) if outputs.has_scores else _Values(outputs)
    with pristine(dense), pristine(small):
        for index, (inputs, labels) in enumerate(pairs):
            counts.add(inputs, labels, call(dense, inputs, index=index), call(small, inputs, index=index))
    return counts.found()


class _Values:
    """Errors of single outputs `[N, K]`."""

    def __init__(self, outputs: Outputs) -> None:
        self.name = outputs.name
        self.errors: Any = 0.0
        self.norms: Any = 0.0

    def add(self, inputs: Any, labels: Any, dense: Any, small: Any) -> None:
        theirs, ours = tensor_at(dense, self.name), tensor_at(small, self.name)
        if theirs is not None and ours is not None and theirs.dim() == 2:
            self.errors = self.errors + (theirs.double() - ours.double()).square().sum(0)
            self.norms = self.norms + theirs.double().square().sum(0)

    def found(self) -> Changes:
        if not isinstance(self.errors, Tensor):
            return Changes()
        errors = (self.errors / self.norms.clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
        order = errors.argsort(descending=True)[:ROWS].tolist()
        return Changes(outputs=tuple((number, float(errors[number])) for number in order))


class _Choices:
    """Counts of classes, and the samples with the largest divergence."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self.counts: Tensor | None = None  # answers, changed, labels, right of the dense and of the compressed one
        self.worst: list[tuple[float, int, ChangedSample]] = []
        self.samples = 0

    def add(self, inputs: Any, labels: Any, dense: Any, small: Any) -> None:
        p, q = (log_softmax(self.outputs.logits(each).double(), -1).cpu() for each in (dense, small))
        theirs, ours = p.argmax(-1), q.argmax(-1)
        size = p.shape[-1]
        truth = labels.cpu() if isinstance(labels, Tensor) and labels.shape == theirs.shape else None
        parts = [(theirs, None), (theirs, theirs != ours)]
        if truth is not None:
            valid = (truth >= 0) & (truth < size)
            parts += [(truth, valid), (truth, valid & (theirs == truth)), (truth, valid & (ours == truth))]
        rows = [torch.bincount((of if at is None else of[at]).flatten(), minlength=size) for of, at in parts]
        added = torch.stack([*rows, *[torch.zeros_like(rows[0])] * (5 - len(rows))])
        self.counts = added if self.counts is None else self.counts + added
        if theirs.dim() == 1:
            self._look(inputs, truth, theirs, ours, (p.exp() * (p - q)).sum(-1))
        self.samples += len(theirs)

    def _look(self, inputs: Any, truth: Tensor | None, theirs: Tensor, ours: Tensor, distances: Tensor) -> None:
        for at in (theirs != ours).nonzero().flatten().tolist():
            sample = ChangedSample(
                index=self.samples + at,
                before=int(theirs[at]),
                after=int(ours[at]),
                label=None if truth is None else int(truth[at]),
                distance=float(distances[at]),
                inputs=inputs[at] if isinstance(inputs, Tensor) else None,
            )
            heapq.heappush(self.worst, (sample.distance, -sample.index, sample))
            if len(self.worst) > SAMPLES:
                heapq.heappop(self.worst)

    def found(self) -> Changes:
        if self.counts is None:
            return Changes()
        answers, changed, labels, dense, small = self.counts.tolist()
        lost = [max(changed[k], dense[k] - small[k]) for k in range(len(answers))]
        order = sorted((k for k in range(len(answers)) if lost[k]), key=lambda k: -lost[k])[:ROWS]
        classes = [
            ChangedClass(index=k, answers=answers[k], changed=changed[k], labels=labels[k], right=(dense[k], small[k]))
            for k in order
        ]
        return Changes(
            total=sum(answers),
            changed=sum(changed),
            classes=tuple(classes),
            samples=tuple(each for _, _, each in sorted(self.worst, key=lambda item: (-item[0], -item[1]))),
        )
