"""Check the curves and pins that a user gives: do they belong to the network, and are their counts right?"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from ..formats import Format, get_format
from ..formats.both_sides import fit, refuses
from ..formats.weights import site_weight
from ..metrics import FitMetric
from ..network.site import Site
from ..network.sites import Sites
from ..plan import DENSE, Curve, Option, dense_option
from ..statistics import Statistics
from .constraints import Pin, parse_pin
from .profile import site_metric


def check_curves(curves: Mapping[str, Curve], sites: Sites, free: Collection[str], metric: str | FitMetric) -> None:
    """Refuse curves that lack one of the `free` sites, or whose counts are wrong for the layers to build."""
    needed = [site for site in sites.values() if site.name in free and not site.dense_because]
    if missing := [repr(site.name) for site in needed if site.name not in curves]:
        raise ValueError(
            f"the curves hold nothing for {'sites' if len(missing) > 1 else 'site'} {', '.join(missing)}; profile this "
            f"network, or ignore what is missing"
        )
    for site in needed:
        curve = curves[site.name]
        first = {option.format: option for option in reversed(curve)}
        last = {option.format: option for option in curve}
        for option in (*first.values(), *last.values()):
            check_option(site, option, metric)


def check_option(
    site: Site, option: Option, metric: str | FitMetric, formats: Mapping[str, Format] | None = None
) -> None:
    """Refuse an option whose counts differ from those of the layer that would be built."""
    if option.format == DENSE:
        right = site.params, site.macs
    else:
        format = get_format(option.format, formats)
        right = format.cost(site, format.check(site, option.ranks), site.chain_bias(metric))
    if (option.params, option.macs) != right:
        raise ValueError(
            f"site {site.name!r}: its curve counts {option.params:,} parameters and {option.macs:,} MACs for "
            f"{option.format} {option.ranks}, which in the {str(metric)!r} metric are {right[0]:,} and "
            f"{right[1]:,}; profile this network in this metric"
        )


def pinned(
    model: nn.Module,
    source: Statistics | Sites,
    site: Site,
    wanted: Pin,
    *,
    metric: str | FitMetric,
    shrink: float = 0.0,
    formats: Mapping[str, Format] | None = None,
) -> Option:
    """The option that a pin of a site names, with the error of its fit.

    Raises:
        ValueError: for an invalid pin, or one that the site cannot have.
    """
    name, ranks = parse_pin(wanted)
    if name == DENSE:
        return dense_option(site)
    format = get_format(name, formats)
    if reason := refuses(format, site, metric):
        raise ValueError(f"site {site.name!r} cannot be pinned to {name}: {reason}")
    ranks = format.check(site, ranks if isinstance(ranks, tuple) else format.named_ranks(site, ranks))
    factors = fit(format, site, site_weight(model, site), site_metric(source, site, metric, model, shrink), ranks)
    cost = format.cost(site, ranks, site.chain_bias(metric))
    return Option(format=format.name, ranks=ranks, params=cost.params, macs=cost.macs, error=factors.error)


def reached(
    model: nn.Module,
    source: Statistics | Sites,
    site: Site,
    option: Option,
    *,
    metric: str | FitMetric,
    shrink: float = 0.0,
    formats: Mapping[str, Format] | None = None,
) -> float:
    """The error that a fit of an option reaches, to some per cent."""
    two_sided, format = site_metric(source, site, metric, model, shrink), get_format(option.format, formats)
    return fit(format, site, site_weight(model, site), two_sided, option.ranks, nearly=True).error
