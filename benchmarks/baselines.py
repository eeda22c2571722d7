"""Published training-free methods, kept as baselines."""

from __future__ import annotations

import copy

from torch import nn

from rankwise import Plan, Statistics, choose
from rankwise.formats import get_format
from rankwise.formats.weights import site_bias, site_weight
from rankwise.network.replacing import replace
from rankwise.plan import DENSE, Curve, Option, dense_option

BALF_DAMPING = 1e-10


def balf(model: nn.Module, stats: Statistics, keep: dict[str, float]) -> tuple[nn.Module, Plan]:
    """Input-metric SVD with a knapsack on normalised energy, re-implemented from the paper's description.

    Uncentred second moment, k x k -> 1 x 1, ranks by the multiple-choice knapsack over `1 - energy(r) / energy`, every
    layer fitted on its own; no bias is touched.

    Source: Gonzalez-Martinez, "BALF: Budgeted Activation-Aware Low-Rank Factorization for Fine-Tuning-Free Model
    Compression", 2025, arXiv 2509.25136.
    """
    svd = get_format("svd")
    curves: dict[str, Curve] = {}
    for name, site in stats.sites.items():
        options = [dense_option(site)]
        if svd.refuses(site) is None:
            metrics = stats[name].uncentred().metrics(damping=BALF_DAMPING)
            for ranks, error in svd.curve(site, site_weight(model, site), metrics, step=1):
                cost = svd.cost(site, ranks, site.has_bias)
                if cost.macs < site.macs:
                    options.append(Option(format="svd", ranks=ranks, params=cost.params, macs=cost.macs, error=error))
        curves[name] = tuple(options)
    plan = choose(model, stats.sites, keep=keep, metric="weight", curves=curves)
    small = copy.deepcopy(model)
    for row in plan.rows:
        if row.format == DENSE:
            continue
        site, layer = stats.sites[row.site], small.get_submodule(row.site)
        metrics = stats[row.site].uncentred().metrics(damping=BALF_DAMPING)
        factors = svd.fit(site, site_weight(model, site), metrics, row.ranks)
        chain = svd.build(layer, row.ranks, bias=site.has_bias)
        svd.fill(chain, factors, site_bias(model, site))
        replace(small, [row.site, *site.aliases], chain)
    return small, plan
