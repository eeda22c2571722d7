"""All verbs in a row: find, collect, choose, factorise, and an account of what was done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .evaluate import Size, size
from .factorisation import factorise
from .factorisation.shrinkage import choose_shrinkage
from .files import digest
from .network.find import find
from .network.sites import Sites
from .plan import Plan
from .planning.budgets import check_keep
from .planning.choose import choose
from .planning.unmet import check_budgets
from .planning.wishes import Asked
from .running.batches import Batches
from .running.example import with_example
from .running.guards import unwrap
from .running.padding import Mask
from .running.verbs import verb
from .statistics import Statistics
from .statistics.collection import collect
from .statistics.shrinkage import check_shrink
from .work import CURVES, LAYERS, PLAN, Work


@dataclass(frozen=True, kw_only=True)
class CompressReport:
    """What `compress` did.

    Attributes:
        sites: what could be factorised.
        plan: what was chosen, and why.
        dense, compressed: parameters, MACs and bytes, counted on the two networks.
        seconds: of each verb.
    """

    sites: Sites
    plan: Plan
    dense: Size
    compressed: Size
    seconds: dict[str, float]

    def __str__(self) -> str:
        lines = []
        for name in ("params", "macs", "bytes"):
            before, after = getattr(self.dense, name), getattr(self.compressed, name)
            lines.append(f"{name:>7} {before:>15,} -> {after:>15,}  ({after / before:.3f})")
        if self.plan.latency is not None:
            lines.append(f"latency {self.plan.latency}")
        factorised = len(self.plan.factorised)
        lines.append(f"{factorised} of {len(self.plan)} sites factorised in {sum(self.seconds.values()):.1f} s")
        return "\n".join(lines)


@verb
def compress(
    model: nn.Module,
    data: Iterable[Any],
    *,
    keep: Mapping[str, float | str] | None = None,
    method: str = "sequential",
    stats: Statistics | None = None,
    shrink: float | None = None,
    positions: int | str = "auto",
    seed: int = 0,
    example: Any = None,
    mask: Mask | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
    **constraints: Any,
) -> tuple[nn.Module, CompressReport]:
    """Compress a trained network with unlabelled samples and a budget; no gradient step.

    Args:
        model: the dense network; left exactly as it was.
        data: a few hundred samples, as any re-iterable of batches without labels.
        keep: the budgets, for instance {"macs": 0.5}; see `choose`.
        method: "sequential" (each site is fitted on what the compressed network really feeds it) or "one-shot".
        stats: statistics collected before, of these or other data; collected from `data` by default, with gradients
            where metric or rule need them.
        shrink: share of the weight metric in that of the statistics, 0 to 1. By default 0; one-shot with `stats` what
            `choose_shrinkage` finds on `data`.
        positions: output positions of each sample to use, as for `collect`.
        seed: of the positions.
        example: an input that MACs are counted for and a latency is measured with, as for `find`; by default the first
            sample of the data, or the whole first batch where a single sample does not stand for it.
        mask: which positions of the data are real, as for `collect`.
        checkpoint: folder that statistics, curves, plan and factorised layers are kept in, each as soon as it is done.
            It stays when all is done: delete it once the result is saved.
        resume: go on from there; with the same arguments the result is the same to the bit as without a stop.
        progress: wraps batches and sites, for progress bars.
        **constraints: rule, evaluate, formats, metric, include, ignore, pin, floor, cap, tie, round_to of `choose`;
            of a latency budget engine and threads.

    Returns:
        The compressed network, of the same class, and a report.

    Raises:
        ValueError: as `collect`, `choose` and `factorise` do; the model is unchanged then. For a checkpoint that is
            missing, damaged or of another run, or data that is different each time.
        OSError: if the checkpoint cannot be begun; one that cannot be written later on is logged.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small, report = compress(net, [torch.randn(32, 64) for _ in range(8)], keep={"params": 0.5})
        >>> report.compressed.params <= 0.5 * report.dense.params
        True
    """
    if method not in ("sequential", "one-shot"):
        raise ValueError(f'unknown method {method!r}; it is "sequential" or "one-shot"')
    model = unwrap(model)
    keep = None if keep is None else check_keep(keep)
    asked = Asked.of(keep=keep, **constraints)
    replace(asked, example=data if asked.is_timed else None).check(model)
    check_shrink(shrink or 0.0)
    work = Work(checkpoint, resume)
    example, batches = with_example(model, Batches.of(data), example)
    seconds: dict[str, float] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = run()
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    held_out = batches if stats is not None and shrink is None and method == "one-shot" else None
    check_budgets(model, find(model, example) if stats is None else stats.sites, keep, asked.constraints)
    options = {"keep": keep, "method": method, "shrink": shrink, "positions": positions, "seed": seed, "mask": mask}
    given = {"statistics": stats and digest(dict(stats), loose=True), "example": digest(example, loose=True)}
    work.begin(model, batches, {**options, **given, **constraints})
    if stats is None:
        collected = partial(
            collect,
            example=example,
            gradients=asked.needs_gradients,
            positions=positions,
            seed=seed,
            mask=mask,
            progress=progress,
        )
        stats = timed("collect", partial(work.statistics, model, example, partial(collected, model, batches)))
    assert stats is not None
    if asked.is_timed:
        constraints["example"] = example
    chosen = partial(choose, keep=keep, progress=progress, **constraints)

    def planned(stats: Statistics, share: float) -> Plan:
        return timed("choose", partial(chosen, model, stats, shrink=share, done=work.of(CURVES, share)))

    def best(stats: Statistics) -> Plan:
        plan = planned(stats, shrink or 0.0)
        if held_out is None or not plan.fit_metric.shrinkable or not plan.factorised:
            return plan
        find_share = partial(choose_shrinkage, positions=positions, seed=seed, progress=progress)
        share = timed("shrinkage", partial(find_share, model, plan, stats, held_out))
        return planned(stats, share) if share else plan

    plan = work.once(PLAN, partial(best, stats))
    sites = stats.sites
    # Sequentially the layers are fitted to moments of their own: those of the plan make room for them.
    source: Statistics | Sites = sites if method == "sequential" and not plan.fit_metric.needs_gradients else stats
    del stats
    layers = work.of(LAYERS)
    if method == "sequential":
        visits = iter([] if progress is None else progress(plan.factorised, "factorise"))

        def step(site: str) -> None:
            next(visits, None)

        def run() -> nn.Module:
            small = factorise(
                model,
                plan,
                source,
                data=batches,
                positions=positions,
                seed=seed,
                step=step,
                example=example,
                mask=mask,
                done=layers,
            )
            deque(visits, maxlen=0)  # to its end, so that the bar is full
            return small
    else:

        def run() -> nn.Module:
            return factorise(model, plan, source, done=layers)

    small = timed("factorise", run)
    report = CompressReport(
        sites=sites, plan=plan, dense=size(model, example), compressed=size(small, example), seconds=seconds
    )
    return small, report
