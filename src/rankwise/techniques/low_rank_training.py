"""Train towards low rank by a technique, factorise at the ranks that it found, and train on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..factorisation import factorise
from ..names import parted
from ..network.find import find
from ..plan import Plan
from ..planning.budgets import is_measured
from ..planning.choose import choose
from ..planning.request import Request
from ..ranks import Rule, get_rule
from ..running.copying import copied
from ..running.guards import unwrap
from ..running.verbs import verb
from ..training.augment import augmentation, named
from ..training.factor_training import CALIBRATION_BATCH, RATE, FactorTraining, TrainReport, agree_, task
from ..training.loop import Loop
from ..training.options import LoopOptions, with_limit
from ..training.samples import Samples
from ..training.together import together
from ..training.trained_sites import trained_sites
from .recipes import Recipe, Wanted, get_recipe


@verb
def train_low_rank(
    model: nn.Module,
    data: Any,
    labels: Tensor | Sequence[int] | None = None,
    *,
    technique: str | Recipe = "maestro",
    only: str | Iterable[str] = "*",
    rule: str | Rule = "evbmf",
    keep: Mapping[str, float] | None = None,
    tune: float = 0.25,
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy,
    **options: Any,
) -> tuple[nn.Module, TrainReport]:
    """Train with a technique, factorise by the plan that it found or that a rule makes, and train the small network.

    Args:
        model: the network, trained or random; it is not changed.
        data: samples as for `Samples.of`.
        labels: one for each sample.
        technique: name, with settings after a colon, of one of `techniques.RECIPES`.
        only: patterns of the layers to train towards low rank; all others stay dense.
        rule: chooses ranks for techniques that find none, and wherever a budget is not met by the technique itself.
        keep: budgets of the small network; some techniques need one.
        tune: share of the epochs or minutes for the second training, between 0 and 1. After a warm-up the second
            training also has what the first one left.
        loss: function of outputs and labels, a mean over the batch.
        **options: as for `training.train`: tune_rate, calibration, augment, prepare, checkpoint, resume, progress, and
            those of `LoopOptions`.

    Returns:
        The small network, of the same class, and a report.

    Raises:
        TypeError: for an argument that does not exist.
        ValueError: for arguments that do not fit, a budget that cannot be met, a technique that prunes everything,
            training that diverges, or a checkpoint of another run.
        OSError: if a checkpoint cannot be written.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 16)
        >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> y = x[:, :4].argmax(1)
        >>> keep = {"params": 0.6}
        >>> small, report = train_low_rank(model, x, y, technique="learning_compression", keep=keep, epochs=2)
        >>> report.plan.planned["params"] <= 0.6 * report.plan.dense["params"]
        True
    """
    if labels is None:
        raise ValueError("training needs labels, one for each sample; rankwise.heal learns without")
    how: FactorTraining
    wanted: LoopOptions
    how, wanted = parted(with_limit({"rate": RATE, "statistics": True, **options}), FactorTraining, LoopOptions)
    recipe, rule, change = get_recipe(technique), get_rule(rule), augmentation(how.augment, labelled=True)
    if not 0 < tune < 1:
        raise ValueError(f"tune is {tune}; it is a share of the training between 0 and 1")
    if keep or not recipe.plans:  # else the rule is not asked
        Request(rule=rule, keep=keep).check(None)
    if is_measured(keep):
        raise ValueError("a network is cut by counts: keep params, macs or bytes, and plan for latency afterwards")
    samples = Samples.of(data, labels=labels, prepare=how.prepare)
    numbers, _ = samples.split(wanted.held_out, wanted.seed)
    wide = copied(unwrap(model))
    example = samples.batch(numbers[:1])[0]
    sites, patterns = find(wide, example), [only] if isinstance(only, str) else list(only)
    names = [site.name for site in trained_sites(wide, sites, patterns)]
    few = [samples.batch(part)[0] for part in numbers[: how.calibration or CALIBRATION_BATCH].split(CALIBRATION_BATCH)]
    device = next(wide.parameters()).device
    fit = partial(_loss, loss, device)
    made = recipe.make(Wanted(model=wide, sites=sites, only=names, keep=keep, batches=few, loss=fit, seed=wanted.seed))
    run: dict[str, Any] = {"augment": named(how.augment), "technique": str(recipe), "only": names, "tune": tune}
    if recipe.budgeted:
        run["keep"] = dict(keep or {})
    with together(device):
        keeping = how.keeping("expanded", run, device, "first")
        aim, part = partial(task, wide, loss, device), wanted.part(1 - tune)
        first = Loop(wide, aim, samples, part, augment=change, techniques=[made], **keeping)
        trained = first.run()
        agree_(wide)
        plan = first.plan
        if plan is None or (keep and not recipe.budgeted):
            plan = _chosen(wide, sites, names, rule, keep)
        small = factorise(wide, plan, sites, data=few if how.calibration else None)
        cut = copied(small)
        run |= {"rule": str(rule), "keep": dict(keep or {}), "calibration": how.calibration}
        left = wanted.part(1 - (1 - tune) * first.share)
        tuning = replace(left, rate=wanted.rate / 10 if how.tune_rate is None else how.tune_rate)
        keeping = how.keeping("small", run, device, "second")
        aim = partial(task, small, loss, device)
        second = Loop(small, aim, samples, tuning, augment=change, **keeping).run()
    stages = {"expanded": trained, "small": second}
    return small, TrainReport(plan=plan, deviation=None, dense=wide, cut=cut, stages=stages)


def _loss(loss: Callable[[Any, Tensor], Tensor], device: Any, outputs: Any, labels: Tensor | None) -> Tensor:
    assert labels is not None
    return loss(outputs, labels.to(device))


def _chosen(model: nn.Module, sites: Any, names: Sequence[str], rule: Rule, keep: Mapping[str, float] | None) -> Plan:
    """Ranks of two-factor chains by a rule, for the trained weights."""
    dense = [name for name in sites if name not in names]
    among: dict[str, Any] = {"include": ["*", *names], "ignore": dense, "round_to": 1}
    return choose(model, sites, rule=rule, keep=keep, metric="weight", formats="svd", **among)
