"""One-shot factorisation: every site on its own, from stored statistics or from the weight alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..formats import Format, get_format
from ..formats.weights import site_bias, site_weight
from ..plan import DENSE, Plan, PlanRow
from ..sites import Site, Sites
from ..statistics import Statistics
from ..statistics.moments import Moments, identity_metrics
from ..surgery import replace


def one_shot(
    dense: nn.Module,
    compressed: nn.Module,
    plan: Plan,
    sites: Sites,
    stats: Statistics | None,
    shrink: float = 0.0,
    formats: Mapping[str, Format] | None = None,
) -> None:
    """Factorise `compressed`, a copy of `dense`, in place.

    Args:
        dense: the dense network.
        compressed: its copy.
        plan: what to build.
        sites: of the dense network.
        stats: statistics; None fits in the weight metric, without a bias correction.
        shrink: share of the weight metric in that of the statistics.
        formats: in place of the usual ones of the same names.

    Raises:
        ValueError: if the statistics miss a site.
    """
    for row in plan.rows:
        if row.format == DENSE:
            continue
        if stats is not None and row.site not in stats:
            raise ValueError(f"the statistics hold nothing for site {row.site!r}; collect them again for this network")
        moments = None if stats is None else stats[row.site]
        factorise_site(dense, compressed, sites[row.site], row, moments, shrink=shrink, formats=formats)


def factorise_site(
    dense: nn.Module,
    compressed: nn.Module,
    site: Site,
    row: PlanRow,
    moments: Moments | None,
    corrects: bool = True,
    shrink: float = 0.0,
    formats: Mapping[str, Format] | None = None,
) -> None:
    """Fit one site to its dense weight and put the chain into `compressed`, under all names of the site.

    Unless it `corrects`, a layer without a bias gets none.
    """
    format, weight, bias = get_format(row.format, formats), site_weight(dense, site), site_bias(dense, site)
    layer = compressed.get_submodule(site.name)
    if moments is None:
        metrics = identity_metrics(site.groups, site.in_features, weight.device)
        factors = format.fit(site, weight, metrics, row.ranks)
    else:
        with_bias = site.chain_bias("input" if corrects else "weight")
        moments = moments if with_bias else moments.uncentred()
        factors = format.fit(site, weight, moments.metrics(shrink), row.ranks)
        bias = moments.bias(weight, factors.dense(), bias) if with_bias else None
    chain = format.build(layer, row.ranks, bias=bias is not None)
    format.fill(chain, factors, bias)
    replace(compressed, [site.name, *site.aliases], chain)
