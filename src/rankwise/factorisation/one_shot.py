"""One-shot factorisation: every site by itself, from stored statistics or from the weight alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from ..formats import Format, get_format
from ..formats.both_sides import fit
from ..formats.weights import site_bias, site_weight, weight_metrics
from ..linalg.two_sided import TwoSided
from ..metrics import get_metric
from ..network.site import Site
from ..network.sites import Sites
from ..plan import Plan, PlanRow
from ..statistics import Statistics
from ..statistics.moments import Moments
from ..surgery.rebuild import rebuild
from .half import fill

if TYPE_CHECKING:
    from ..plan import Done
    from ..work import Layer


def one_shot(
    dense: nn.Module,
    compressed: nn.Module,
    plan: Plan,
    sites: Sites,
    stats: Statistics | None,
    shrink: float = 0.0,
    formats: Mapping[str, Format] | None = None,
    done: Done[Layer] | None = None,
) -> None:
    """Factorise `compressed`, a copy of `dense`, in place.

    Args:
        stats: None fits in the weight metric, without a bias correction.
        shrink: share of the weight metric in that of the statistics.
        done: layers that were fitted before; missing ones are added.

    Raises:
        ValueError: if the statistics miss a site.
    """
    for row in plan.factorised:
        if put_done(compressed, sites[row.site], row, plan.metric, formats, done):
            continue
        metric = None if stats is None else stats.metric(row.site, plan.metric, shrink)
        moments = None if stats is None else stats[row.site]
        factorise_site(dense, compressed, sites[row.site], row, moments, metric, plan.metric, formats, done)


def put_done(
    compressed: nn.Module,
    site: Site,
    row: PlanRow,
    metric: str,
    formats: Mapping[str, Format] | None,
    done: Done[Layer] | None,
) -> bool:
    """Put a chain that was fitted before into `compressed`, under all names of the site; whether there is one."""
    if done is None or site.name not in done:
        return False
    format, bias = get_format(row.format, formats), site.chain_bias(metric)
    chain = rebuild(compressed, site.role, site.names, format, row.ranks, bias, site.feeders)
    chain.load_state_dict(done[site.name])
    return True


def note_done(chain: nn.Module, site: Site, done: Done[Layer] | None) -> None:
    """Add a chain that was fitted now."""
    if done is not None:
        done[site.name] = {name: tensor.clone() for name, tensor in chain.state_dict().items()}


def factorise_site(
    dense: nn.Module,
    compressed: nn.Module,
    site: Site,
    row: PlanRow,
    moments: Moments | None,
    two_sided: TwoSided | None,
    metric: str,
    formats: Mapping[str, Format] | None = None,
    done: Done[Layer] | None = None,
) -> None:
    """Fit one site to its dense weight and put the chain into `compressed`, under all names of the site.

    A plan in the weight metric adds no bias, but the fit still uses moments where there are any.

    Args:
        moments, two_sided: of the site's inputs, and the metric that follows; None fits in the weight metric.
        metric: name of the plan's metric.
    """
    format, weight, bias = get_format(row.format, formats), site_weight(dense, site), site_bias(dense, site)
    if moments is None or two_sided is None:
        factors = format.fit(site, weight, weight_metrics(site, weight.device), row.ranks)
    else:
        with_bias = site.chain_bias(metric)
        # With a mean of zero the layer keeps its own bias.
        moments = moments if with_bias and get_metric(metric).centred else moments.uncentred()
        factors = fit(format, site, weight, two_sided, row.ranks)
        bias = moments.bias(weight, factors.dense(), bias) if with_bias else None
    chain = rebuild(compressed, site.role, site.names, format, row.ranks, bias is not None, site.feeders)
    fill(format, chain, factors, bias, moments)
    note_done(chain, site, done)
