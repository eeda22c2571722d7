"""Fits and curves in a two-sided metric, for every format: transform the weight before and one factor after.

Letters: see `linalg.two_sided`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..layers.kinds import Role
from ..linalg.two_sided import TwoSided
from ..metrics import FitMetric, get_metric
from ..network.site import Site
from .base import Factors, Format, Ranks, Rivals
from .multilinear import Multilinear
from .race import Entry


def refuses(format: Format, site: Site, metric: str | FitMetric) -> str | None:
    """Why a format cannot take the site in a metric; None if it can."""
    if reason := format.refuses(site):
        return reason
    metric = get_metric(metric)
    if metric.needs_weight_gradients and (site.looks_up or len(site.slots) > 1):
        return f"the {metric} metric needs gradients of the weight, which are collected of single layers; use another"
    if metric.needs_gradients and site.role is not Role.TIED and format.output_factor(site) is None:
        return (
            f"{format.name} has no factor that alone holds the outputs of this layer, and the {metric} metric weighs "
            f"them together; use svd, or another metric"
        )
    return None


def curve(
    format: Format, site: Site, weight: Tensor, metric: TwoSided, step: int, rivals: Rivals | None = None
) -> list[tuple[Ranks, float]]:
    """`Format.curve` in a two-sided metric."""
    return format.curve(site, metric.forth(weight), metric.inputs_of(weight), step, rivals)


def entry(
    formats: Sequence[Multilinear], site: Site, weight: Tensor, metric: TwoSided, step: int, rivals: Rivals | None
) -> Entry:
    """The entry of a site to a race of formats in a two-sided metric."""
    return Entry(formats, site, metric.forth(weight), metric.inputs_of(weight), step, rivals)


def fit(format: Format, site: Site, weight: Tensor, metric: TwoSided, ranks: Ranks, *, nearly: bool = False) -> Factors:
    """`Format.fit` in a two-sided metric: `min ||R (W - V) Sigma^(1/2)||_F`, `R^T R = G`.

    Args:
        format: must not refuse the metric.
        site: the site.
        weight: O x I/G [x kernel].
        metric: of inputs and outputs.
        ranks: of the format.
        nearly: end earlier, see `Format.nearly`.

    Returns:
        Factors of the weight itself, with the relative error in the metric.

    Raises:
        ValueError: if the ranks are not between 1 and `limits(site)`.
    """
    fitted = format.nearly if nearly else format.fit
    factors = fitted(site, metric.forth(weight), metric.inputs_of(weight), ranks)
    if metric.root_GTT is None:
        return factors
    place = format.output_factor(site)
    assert place is not None
    name, axis = place
    tensor = metric.back(factors.tensors[name].movedim(axis, 1)).movedim(1, axis)
    return replace(factors, tensors={**factors.tensors, name: tensor}, weight=metric.back(factors.weight))
