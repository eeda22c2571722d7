"""Options of training loops, and what they report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How to train.

    Attributes:
        epochs: passes over the samples, also a fraction; None for no limit.
        minutes: wall-clock limit; None for no limit. At least one limit is needed; the first one reached ends it.
        batch: samples in a step of each process.
        optimiser: "adamw" or "sgd" (Nesterov, momentum 0.9).
        rate: the largest learning rate.
        weight_decay: the optimiser's.
        warmup: share of the training in which the rate rises.
        clip: largest norm of the gradient.
        held_out: share of the samples that judge and are not trained on, at most 1,024 of them.
        every: steps between two looks at the held-out samples; by default an epoch, at most 200.
        patience: stop after so many looks without a gain; None never stops.
        statistics: whether batch norms follow the batches; by default they do not change.
        amp: bfloat16 in the forward; by default on a GPU that has it.
        seed: random seed.
    """

    epochs: float | None = None
    minutes: float | None = None
    batch: int = 128
    optimiser: str = "adamw"
    rate: float = 5e-4
    weight_decay: float = 0.0
    warmup: float = 0.05
    clip: float = 1.0
    held_out: float = 0.1
    every: int | None = None
    patience: int | None = None
    statistics: bool = False
    amp: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs is None and self.minutes is None:
            raise ValueError("epochs and minutes are both None; say how long to train")
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser {self.optimiser!r} is not one of {', '.join(OPTIMISERS)}")
        for name in ("epochs", "minutes", "batch", "rate", "clip", "held_out", "every", "patience"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be above 0")

    def part(self, share: float) -> LoopOptions:
        """The same options with a share of the epochs and minutes."""
        limits = {name: getattr(self, name) for name in ("epochs", "minutes")}
        return replace(self, **{name: limit and share * limit for name, limit in limits.items()})


def with_limit(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `LoopOptions`, with 10 epochs if no limit is given."""
    none = options.get("epochs") is None and options.get("minutes") is None
    return {**options, "epochs": 10} if none else dict(options)


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How a training is kept and followed.

    Attributes:
        checkpoint: file to write at every look.
        resume: resume from that file.
        run: what else identifies this training, in plain values; a checkpoint of another one is refused.
        progress: called with every `Look`.

    Raises:
        ValueError: for resuming without a file.
    """

    checkpoint: str | Path | None = None
    resume: bool = False
    run: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[Look], None] | None = None

    def __post_init__(self) -> None:
        if self.resume and self.checkpoint is None:
            raise ValueError("resume needs a checkpoint to resume from; name its file")


@dataclass(frozen=True, kw_only=True)
class Look:
    """A look at the held-out samples: steps, seconds and share of the training so far, mean loss of the steps since the
    last look (None at the start), and the held-out loss."""

    step: int
    seconds: float
    share: float
    loss: float | None
    held_out: float


@dataclass(frozen=True, kw_only=True)
class LoopReport:
    """What a training did.

    Attributes:
        before, after: held-out loss at the start, and of the returned network.
        steps: optimiser steps.
        seconds: wall clock of all runs that it took.
        looks: all looks at the held-out samples, from the start on.
    """

    before: float
    after: float
    steps: int
    seconds: float
    looks: tuple[Look, ...]
