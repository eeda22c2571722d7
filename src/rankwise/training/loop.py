"""A training loop that can be killed at any moment and never returns a worse network than it was given."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..names import parted
from ..plan import Plan
from ..running.calling import prepared, samples_in
from ..running.guards import unwrap
from ..running.pristine import evaluating
from ..running.state import set_state
from ..running.verbs import verb
from .augment import Augment
from .checkpoint import read_checkpoint, write_checkpoint
from .guard import Guard
from .modes import learning
from .options import OPTIMISERS, Keeping, Look, LoopOptions, LoopReport
from .samples import Samples, derived, permutation
from .schedule import Cosine
from .technique import Penalty, Step, Technique
from .together import rank, shared, together, world, wrapped

Loss = Callable[[Any, "Tensor | None"], Tensor]
Evaluate = Callable[[nn.Module, list[Any]], float]
LONGEST = 200  # steps between two looks at the held-out samples, unless asked for more


class Loop:
    """Minimise a loss over samples; the state that is best on the held-out samples is kept.

    Everything random in step t follows from (seed, t), so a training limited by epochs that is resumed from its
    checkpoint ends with the same numbers as one that was never stopped. Under torchrun every process takes its share of
    each batch and the first one writes.

    Args:
        model: the network, trained in place, in eval mode (see `LoopOptions.statistics`).
        loss: `loss(inputs, labels)` of a batch, which runs the network itself; labels may be None.
        samples: what to train on.
        options: how.
        judge: like `loss`, on held-out samples; by default the loss itself.
        evaluate: instead of `judge`: the loss of a network on all held-out batches together, which are inputs or pairs
            (inputs, labels).
        parameters: those to train; by default all.
        augment: random changes of a batch.
        penalties: further losses that need no data: functions without arguments.
        techniques: what else the training does, see `Technique`.
        **keeping: checkpoint, resume, run and progress of `Keeping`.

    Attributes:
        plan: from the first technique that chose one, after `run`.

    Raises:
        ValueError: for options that do not fit, or a checkpoint that is missing, damaged or of another training.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> samples = Samples.of(torch.randn(100, 4))
        >>> loop = Loop(model, lambda x, _: (model(x) - x.sum(1, True)).square().mean(), samples, LoopOptions(epochs=1))
        >>> report = loop.run()
        >>> report.after <= report.before
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        samples: Samples,
        options: LoopOptions,
        *,
        judge: Loss | None = None,
        evaluate: Evaluate | None = None,
        parameters: Sequence[nn.Parameter] | None = None,
        augment: Augment | None = None,
        penalties: Sequence[Callable[[], Tensor]] = (),
        techniques: Sequence[Technique] = (),
        **keeping: Any,
    ) -> None:
        kept: Keeping
        (kept,) = parted(keeping, Keeping)
        self.model, self.loss, self.samples, self.options = unwrap(model), loss, samples, options
        self.judge, self.evaluate = judge or loss, evaluate
        self.augment, self.techniques = augment, (*techniques, *map(Penalty, penalties))
        for technique in self.techniques:
            technique.begin(self.model)
        self.parameters = list(self.model.parameters() if parameters is None else parameters)
        self.checkpoint = None if kept.checkpoint is None else Path(kept.checkpoint)
        self.resume, self.progress = kept.resume, kept.progress
        self.training, self.held_out = samples.split(options.held_out, options.seed)
        self.device = self.parameters[0].device
        make = OPTIMISERS[options.optimiser]
        self.optimiser = make(self.parameters, lr=options.rate, weight_decay=options.weight_decay)
        self.schedule = Cosine(self.optimiser, options.warmup)
        self.identity = {**asdict(options), "samples": len(samples), "layers": _outline(self.model), **kept.run}
        self.step, self.spent, self.looks = 0, 0.0, list[Look]()
        self._order: tuple[int, Tensor] | None = None
        self.ended = False
        self.guard: Guard
        self.plan: Plan | None = None

    @verb
    def run(self) -> LoopReport:
        """Train.

        Raises:
            ValueError: if the loss is not finite, or a technique cannot go on; network and checkpoint then hold the
                best state.
            OSError: if a checkpoint cannot be written; the one before is still there.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            together(self.device),
            torch.enable_grad(),
            torch.random.fork_rng(devices),
            learning(self.model, self.parameters, self.options.statistics),
        ):
            self._begin()
            try:
                self._train()
            except ValueError:
                self.guard.restore()
                raise
            seconds = self.seconds
        self.guard.restore()
        plans = [plan for technique in self.techniques if (plan := technique.finish(self.model)) is not None]
        self.plan = plans[0] if plans else None
        return LoopReport(
            before=self.guard.start,
            after=self.guard.loss,
            steps=self.step,
            seconds=seconds,
            looks=tuple(self.looks),
        )

    @property
    def share(self) -> float:
        """Share of the training that is done."""
        done = [0.0]
        if self.options.epochs is not None:
            done.append(self.step / max(round(self.options.epochs * self.epoch_steps), 1))
        if self.options.minutes is not None:
            done.append(shared(self.seconds, self.device) / (60 * self.options.minutes))
        return min(max(done), 1.0)

    @property
    def seconds(self) -> float:
        """Wall clock so far, of all runs."""
        return self.spent + time.monotonic() - self.since

    @property
    def epoch_steps(self) -> int:
        """Steps in an epoch; samples that do not fill a last batch are left out of it."""
        return max(len(self.training) // (self.options.batch * world()), 1)

    def _begin(self) -> None:
        self.since = time.monotonic()
        self.identity["processes"] = world()
        if self.checkpoint is None or not self.resume:
            if self.checkpoint is not None and shared(self.checkpoint.exists(), self.device):
                raise ValueError(f"checkpoint {self.checkpoint} exists; resume from it, or delete it")
            self.guard = Guard(self.model, held_out := self._judged())
            self._look(None, held_out)
            return
        state = read_checkpoint(self.checkpoint, self.identity)
        set_state(self.model, state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.guard = Guard(self.model, state["guard"]["start"])
        self.guard.load_state_dict(state["guard"])
        self.step, self.spent = state["step"], state["seconds"]
        self.looks = [Look(**look) for look in state["looks"]]
        self.ended = state.get("ended", False)
        for technique, own in zip(self.techniques, state.get("techniques", ()), strict=False):
            technique.load_state_dict(own)

    def _train(self) -> None:
        step = wrapped(_BatchLoss(self), self.device)
        every = self.options.every or min(self.epoch_steps, LONGEST)
        losses: list[Tensor] = []
        share = self.share
        while share < 1 and self.guard.waited < (self.options.patience or math.inf) and not self.ended:
            self.schedule(share)
            losses.append(self._step(step, share))
            self.step += 1
            share = self.share
            if self.step % every == 0 or share >= 1:
                self.guard(held_out := self._judged())
                self.ended = any(technique.ends() for technique in self.techniques)
                self._look(float(torch.stack(losses).mean()), held_out)
                losses.clear()
                share = self.share

    def _step(self, step: nn.Module, share: float) -> Tensor:
        torch.manual_seed(derived(self.options.seed, "step", self.step, rank()))
        inputs, labels = self.samples.batch(self._numbers())
        inputs = prepared(self.model, inputs)
        if self.augment is not None:
            inputs = self.augment(inputs)
        now = Step(number=self.step, share=share, inputs=inputs, labels=labels, optimiser=self.optimiser)
        for technique in self.techniques:
            technique.before_step(now)
        loss = step(inputs, labels)
        self.optimiser.zero_grad()
        try:
            loss.backward()
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise ValueError(
                f"{type(self.model).__name__} writes into a tensor that its gradient needs ({error}); let forward work "
                "on a copy (x = x.clone())"
            ) from error
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        if not math.isfinite(norm + loss.detach()):
            raise ValueError(
                f"step {self.step} has a loss of {float(loss.detach()):.4g} and a gradient of norm {float(norm):.4g}: "
                f"the training diverges at a rate of {self.options.rate:g}; choose a smaller one. The network is back "
                f"in its best state, with a held-out loss of {self.guard.loss:.4g}"
            )
        self.optimiser.step()
        for technique in self.techniques:
            technique.after_step(now)
        return loss.detach()

    def _numbers(self) -> Tensor:
        """The samples of this process in this step."""
        epoch, place = divmod(self.step, self.epoch_steps)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.training[permutation(len(self.training), self.options.seed, "epoch", epoch)]
        size = self.options.batch * world()
        return self._order[1][place * size : (place + 1) * size][rank() :: world()]

    @torch.no_grad()
    def _judged(self) -> float:
        total, count = 0.0, 0
        stored = self.samples.batches(self.held_out, 2 * self.options.batch)
        batches = ((prepared(self.model, inputs), labels) for inputs, labels in stored)
        price = sum(technique.price() for technique in self.techniques)
        with ExitStack() as delivered:
            for technique in self.techniques:
                delivered.enter_context(technique.judging(self.model))
            delivered.enter_context(evaluating(self.model))
            if self.evaluate is not None:
                whole = [inputs if labels is None else (inputs, labels) for inputs, labels in batches]
                return shared(self.evaluate(self.model, whole) + price, self.device)
            for inputs, labels in batches:
                size = samples_in(inputs)
                total += size * float(self.judge(inputs, labels))
                count += size
        return shared(total / count + price, self.device)

    def _look(self, loss: float | None, held_out: float) -> None:
        look = Look(step=self.step, seconds=self.seconds, share=self.share, loss=loss, held_out=held_out)
        self.looks.append(look)
        if rank() > 0:
            return
        if self.checkpoint is not None:
            state = {
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "guard": self.guard.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "looks": [asdict(each) for each in self.looks],
                "ended": self.ended,
            }
            if any(own := [technique.state_dict() for technique in self.techniques]):
                state["techniques"] = own
            write_checkpoint(self.checkpoint, self.identity, state)
        if self.progress is not None:
            self.progress(look)


class _BatchLoss(nn.Module):
    """The loss of a batch as the forward of a module, which is what DistributedDataParallel wraps."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.model, self.loop = loop.model, loop
        amp, self.kind = loop.options.amp, loop.device.type
        self.amp = self.kind == "cuda" and torch.cuda.is_bf16_supported() if amp is None else amp

    def forward(self, inputs: Any, labels: Tensor | None) -> Tensor:
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.amp):
            loss = self.loop.loss(inputs, labels)
        for technique in self.loop.techniques:
            if (penalty := technique.penalty()) is not None:
                loss = loss + penalty
        return loss


def _outline(model: nn.Module) -> str:
    """A digest of names and shapes: networks with other layers have another one."""
    shapes = "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items())
    return hashlib.sha256(shapes.encode()).hexdigest()[:16]
