"""How far to trust statistics of other data, decided on a few unlabelled samples of the data the network will see.

Letters: G groups, T outputs and D inputs per group.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import get_format
from ..formats.both_sides import fit
from ..formats.weights import site_weight
from ..plan import Plan, PlanRow
from ..running.guards import unwrap
from ..running.verbs import verb
from ..statistics import Moments, Statistics, collect
from ..statistics.shrinkage import check_shrink
from .apply import check_plan

logger = logging.getLogger("rankwise")

SHARES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


@verb
@torch.no_grad()
def choose_shrinkage(
    model: nn.Module,
    plan: Plan,
    stats: Statistics,
    held_out: Iterable[Any],
    *,
    shares: Sequence[float] = SHARES,
    positions: int | str = "auto",
    seed: int = 0,
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
) -> float:
    """The share of the weight metric whose one-shot fits have the least error on held-out samples.

    `argmin over s of sum_i E ||(W_i - V_i(s)) (x - mu_i)||^2 / E ||W_i (x - E x)||^2` over the plan's factorised sites,
    with `x` from the held-out samples and `V_i(s)`, `mu_i` from the statistics. In the metric "fisher" outputs are
    weighted by the gradients in the statistics. All sites share one number, because one per site would fit the noise of
    few samples. The ranks are the plan's; choose again with the result.

    Args:
        model: the dense network.
        plan: in any metric but "weight".
        stats: of any data; the fits use them.
        held_out: unlabelled batches of the data that the network will see, none of them used for `stats`. A hundred
            samples are enough.
        shares: to try, from 0 (the statistics) to 1 (the weight metric); the first wins a tie.
        positions: output positions of each held-out sample to use, as for `collect`.
        seed: of the positions.
        progress: wraps the sites, for a progress bar.

    Returns:
        One of `shares`, for `shrink=` of `choose`, `profile` and `factorise`.

    Raises:
        ValueError: if the plan is in the weight metric or for another network, factorises nothing, or the statistics
            miss a site; if there are no shares, or one outside 0 to 1.

    Example:
        >>> import torch, rankwise as rw
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
        >>> elsewhere, here = torch.randn(64, 32) * torch.tensor([1.0] * 4 + [0.0] * 28), torch.randn(64, 32)
        >>> stats = rw.collect(model, [elsewhere])
        >>> plan = rw.choose(model, stats, keep={"macs": 0.5}, include="0")
        >>> choose_shrinkage(model, plan, stats, [here])
        1.0
    """
    model = unwrap(model)
    metric = plan.fit_metric
    if not metric.shrinkable or not plan.factorised:
        why = "factorises nothing" if metric.shrinkable else f'is in the "{metric}" metric already'
        raise ValueError(f"the plan {why}, so there is nothing to shrink; choose one with statistics and a budget")
    if not shares:
        raise ValueError("no share to try; give at least one from 0 to 1, or leave out shares")
    stats.sites.check_structure(model)
    check_plan(plan, stats.sites)
    for row in plan.factorised:
        stats.require(row.site, gradients=metric.needs_gradients)
    errors = {check_shrink(share): 0.0 for share in shares}
    planned = [row.site for row in plan.factorised]
    held = collect(model, held_out, only=planned, positions=positions, seed=seed, joint=stats.sites.joint)
    rows: Iterable[PlanRow] = plan.factorised
    for row in rows if progress is None else progress(rows, "shrinkage"):
        site, format = stats.sites[row.site], get_format(row.format)
        pair = [moments[row.site] for moments in (stats, held)]
        fitted, seen = pair if site.chain_bias(metric) else [moments.uncentred() for moments in pair]
        weight = site_weight(model, site)
        outputs, grouped = metric.of(fitted), (site.groups, -1, site.in_features)
        for share in errors:
            factors = fit(format, site, weight, metric.of(fitted, share), row.ranks, nearly=True)
            change, whole = (outputs.forth(each).reshape(grouped) for each in (weight - factors.dense(), weight))
            errors[share] += output_error(change, whole, fitted, seen)
    best = min(errors, key=errors.__getitem__)
    told = ", ".join(f"{share:g}: {error / len(plan.factorised):.4f}" for share, error in errors.items())
    logger.info("error of the sites' outputs on the held-out samples, by share of the weight metric: %s", told)
    return best


def output_error(change_GTD: Tensor, weight_GTD: Tensor, fitted: Moments, held: Moments) -> float:
    """`E ||(W - V)(x - mu)||^2 / E ||W (x - E x)||^2` with `x` held out and `mu` the mean that the bias corrects for.

    Args:
        fitted, held: moments of the site's input in the statistics, and in the held-out samples.

    Returns:
        The relative squared error; 0 if the site's output is constant; for a tied embedding the mean over both uses.
    """
    missed = total = 0.0
    metrics = held.metrics(damping=0)
    for group, metric in enumerate(metrics[: len(held.mean_GD)]):
        shift_T = change_GTD[group] @ (held.mean_GD[group] - fitted.mean_GD[group])
        missed += metric.energy(change_GTD[group]) + float(shift_T.square().sum())
        total += metric.energy(weight_GTD[group])
    error = missed / total if total > 0 else 0.0
    if held.lookups_V is None:
        return error
    return (error + metrics[-1].energy(change_GTD[0].mT) / metrics[-1].energy(weight_GTD[0].mT)) / 2
