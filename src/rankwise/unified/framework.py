"""The unified framework: a continuous search for ranks, in rounds from coarse to fine, and a training of its result."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..factorisation import factorise
from ..names import parted
from ..network.find import find
from ..network.sites import Sites
from ..plan import Plan
from ..planning.constraints import Constraints
from ..running.calling import call
from ..running.copying import copied
from ..running.guards import unwrap
from ..running.outputs import check_labels
from ..running.state import set_state
from ..running.verbs import verb
from ..training.augment import Augment, augmentation, named
from ..training.distil import Distillation
from ..training.loop import Loop
from ..training.options import LoopOptions, LoopReport, with_limit
from ..training.rank_search import RankSearch
from ..training.ranks_in_turn import AIMS, RanksInTurn
from ..training.samples import Samples
from ..training.stages import Stages
from ..training.together import together
from .dissimilarity import Dissimilarity

logger = logging.getLogger("rankwise")

CALIBRATION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Searching(Stages):
    """Further options of `unified`.

    Attributes:
        candidates: number of options of each layer at a time.
        rounds: the most rounds of the search; each one is finer than the one before.
        search: share of the epochs or minutes for the search.
        warm_up: steps of each round in which the weights move alone.
        search_rate: learning rate of the alphas.
        beta: exponent of the cost in the product.
        dissimilarity: weight of the distance from the dense layers in the second training.
        calibration: samples whose outputs the layers are fitted to between the two; 0 fits them to their weights.
        augment: random changes of a batch.
    """

    candidates: int = 6
    rounds: int = 2
    search: float = 0.5
    warm_up: int = 20
    search_rate: float = 0.1
    beta: float = 1.0
    dissimilarity: float = 0.5
    calibration: int = 512
    augment: str | Augment | None = None


@dataclass(frozen=True, kw_only=True)
class UnifiedReport:
    """What `unified` did.

    Attributes:
        plan: formats and ranks that were found.
        cut: the factorised network before its training.
        rounds: the rounds of the search.
        tuned: the training of the result.
    """

    plan: Plan
    cut: nn.Module
    rounds: tuple[LoopReport, ...]
    tuned: LoopReport

    @property
    def seconds(self) -> float:
        """Wall clock of all."""
        return sum(each.seconds for each in (*self.rounds, self.tuned))

    def __str__(self) -> str:
        searching = sum(each.seconds for each in self.rounds)
        return (
            f"{len(self.rounds)} rounds of search in {searching:.0f} s, then {self.tuned.steps} steps in "
            f"{self.tuned.seconds:.0f} s: held-out loss {self.tuned.before:.4g} -> {self.tuned.after:.4g}"
        )


@verb
def unified(
    model: nn.Module,
    data: Any,
    labels: Tensor | Sequence[int] | None = None,
    *,
    keep: Mapping[str, float],
    formats: str | Sequence[str] = ("cp3",),
    learn: str = "loss",
    aim: str = "budget",
    only: str | Sequence[str] = "*",
    **options: Any,
) -> tuple[nn.Module, UnifiedReport]:
    """Search ranks by gradient descent, factorise, and train near the dense layers.

        search:  weights  min sum_i ||W_i - W^_i||^2 L_r,   W^_i = sum_r p_i^(r) W_i^(r),  p_i = softmax(alpha_i)
                 alphas   min L L_r  (aim "product"),   min L within the budget  (aim "budget")
        then:    min  L_task + dissimilarity (mean (W - V)^2 + mean (O - D)^2)

    `L` is the loss of the network with the mixtures as weights (`learn="loss"`), or the distance alone, which needs no
    data (`learn="distance"`). `L_task` is the cross entropy of the labels; without labels it is the divergence from the
    dense network's own answers.

    Args:
        model: a trained network; it is not changed.
        data: samples as for `Samples.of`: a batch, batches, or a map-style Dataset of inputs.
        labels: class numbers, one for each sample; None to learn from the network's own answers.
        keep: one budget, as a share of macs or params.
        formats: formats to choose from: "cp3" and "tt" are the published ones, any other may be given.
        learn: "loss" or "distance".
        aim: "budget", or "product", the published one, where the budget only cuts the plan.
        only: patterns of the layers that take part.
        **options: of `Searching` (candidates, rounds, search, warm_up, search_rate, beta, dissimilarity, calibration,
            augment, checkpoint, resume, progress) and of `LoopOptions`: epochs or minutes of search and training
            together, by default 10 epochs; batch, optimiser, rate, clip, held_out, patience, seed, ...

    Returns:
        The small network, of the same class, and a report.

    Raises:
        TypeError: for an argument that does not exist.
        ValueError: for arguments that do not fit, a budget that cannot be met, a search that collapsed, training that
            diverges, or a checkpoint of another run.

    Example:
        >>> import torch
        >>> x = torch.randn(256, 16)
        >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> small, report = unified(model, x, keep={"params": 0.7}, formats="svd", epochs=4)
        >>> report.plan.planned["params"] <= 0.7 * report.plan.dense["params"]
        True

    Source: Aghababaei-Harandi and Amini, "Unified Framework for Neural Network Compression via Decomposition and
    Optimal Rank Selection", 2024, arXiv 2409.03555 (RENE); the aim "budget" and the network's own answers are ours.
    """
    how: Searching
    wanted: LoopOptions
    how, wanted = parted(with_limit(options), Searching, LoopOptions)
    unit = _unit(keep, learn, aim, how)
    dense, change = unwrap(model), augmentation(how.augment, labelled=labels is not None)
    samples = Samples.of(data, labels=labels)
    numbers, _ = samples.split(wanted.held_out, wanted.seed)
    few, told = samples.batch(numbers[:1])
    sites = find(dense, few)
    distil = Distillation(dense, temperature=1.0)
    if labels is not None:
        assert samples.labels is not None
        check_labels(samples.labels, distil.outputs(few, told).classes)
    task = _Task(distil)
    run: dict[str, Any] = {"keep": dict(keep), "learn": learn, "aim": aim, "augment": named(how.augment)}
    run |= {
        name: value for name, value in vars(how).items() if name not in ("checkpoint", "resume", "progress", "augment")
    }
    run |= {"formats": [formats] if isinstance(formats, str) else list(formats), "only": list(only)}
    with together(next(dense.parameters()).device):
        moved, search = copied(dense), partial(RankSearch, sites=sites, candidates=how.candidates, formats=formats)
        found = search(moved, constraints=_only(sites, only), unit=unit, beta=how.beta)
        rounds: list[LoopReport] = []
        start = {name: tensor.clone() for name, tensor in moved.state_dict().items()}
        part = wanted.part(how.search / how.rounds)
        while True:
            turn = RanksInTurn(
                found,
                (lambda outputs, step: task(outputs, step.inputs, step.labels)) if learn == "loss" else None,
                rate=how.search_rate,
                weight=0.0,
                keep=keep,
                warm_up=how.warm_up,
                aim=aim,
            )
            keeping = _keeping(how, f"search {len(rounds) + 1}", run)
            loop = Loop(moved, partial(_moving, found), samples, part, techniques=[turn], augment=change, **keeping)
            rounds.append(loop.run())
            _check(found, aim)
            if len(rounds) == how.rounds:
                break
            set_state(moved, start)
            if not found.refine():
                break
        plan = found.plan(keep)
        batches = [samples.batch(some)[0] for some in numbers[: how.calibration].split(CALIBRATION_BATCH)]
        small = factorise(dense, plan, sites, data=batches if how.calibration else None)
        cut, near = copied(small), Dissimilarity(dense, small)
        left = wanted.part(1 - how.search)
        loss = partial(_near, near, task, how.dissimilarity)
        judge = partial(_judged, small, task)
        loop = Loop(small, loss, samples, left, judge=judge, augment=change, **_keeping(how, "training", run))
        tuned = loop.run()
    return small, UnifiedReport(plan=plan, cut=cut, rounds=tuple(rounds), tuned=tuned)


def _unit(keep: Mapping[str, float], learn: str, aim: str, how: Searching) -> str:
    """The unit of the budget; a ValueError for settings that do not fit."""
    if len(keep) != 1 or not all(isinstance(share, float) and 0 < share < 1 for share in keep.values()):
        raise ValueError(f"keep is {dict(keep)}; the search takes one budget, a share such as {{'macs': 0.3}}")
    if learn not in ("loss", "distance"):
        raise ValueError(f"learn is {learn!r}; it is loss or distance")
    if aim not in AIMS:
        raise ValueError(f"aim is {aim!r}; it is {' or '.join(AIMS)}")
    if how.rounds < 1 or not 0 < how.search < 1 or how.dissimilarity < 0:
        raise ValueError(
            f"rounds is {how.rounds}, search {how.search}, dissimilarity {how.dissimilarity}; they must be at least 1, "
            "between 0 and 1, and at least 0"
        )
    return next(iter(keep))


def _only(sites: Sites, only: str | Sequence[str]) -> Constraints:
    return Constraints(include=[only] if isinstance(only, str) else list(only))


def _keeping(how: Searching, stage: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Keeping` for a stage; all but the training have files with their own names."""
    file = None if how.checkpoint is None else Path(how.checkpoint)
    if file is not None and stage != "training":
        file = file.with_name(f"{file.name}.{stage.replace(' ', '')}")
    resume = how.resume and file is not None and file.exists()
    progress = None if how.progress is None else partial(how.progress, stage)
    return {"checkpoint": file, "resume": resume, "run": {"stage": stage, **run}, "progress": progress}


class _Task:
    """Cross entropy of the labels; without labels the divergence from the dense network's answers."""

    def __init__(self, distil: Distillation) -> None:
        self.distil = distil

    def __call__(self, outputs: Any, inputs: Any, labels: Tensor | None) -> Tensor:
        if labels is None:
            return self.distil(inputs, outputs)
        scores = self.distil.outputs(inputs, labels).logits(outputs)
        return cross_entropy(scores, labels.to(scores.device))


def _moving(found: RankSearch, inputs: Any, labels: Tensor | None) -> Tensor:
    """What the weights follow in the search: no data."""
    return found.penalty()


def _near(near: Dissimilarity, task: _Task, weight: float, inputs: Any, labels: Tensor | None) -> Tensor:
    outputs, distance = near(inputs)
    return task(outputs, inputs, labels) + weight * distance


def _judged(small: nn.Module, task: _Task, inputs: Any, labels: Tensor | None) -> Tensor:
    return task(call(small, inputs), inputs, labels)


def _check(found: RankSearch, aim: str) -> None:
    """A ValueError if the product went to zero by its cost alone."""
    if aim == "product" and found.is_collapsed():
        raise ValueError(
            "the search collapsed: every layer prefers its cheapest option, as a product is zero where the cost is; "
            "use aim='budget', or a smaller beta"
        )
