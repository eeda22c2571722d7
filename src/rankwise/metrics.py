"""Metrics of fits, by name in `METRICS`; known without importing PyTorch.

Letters: see `statistics.moments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from .names import check_name

Sides = TypeVar("Sides", covariant=True)


class HasSides(Protocol[Sides]):
    """`statistics.Moments`, as far as a metric needs them."""

    def sided(self, shrink: float, *, diagonal: bool = False, weighted: bool = False, kind: str | None = None) -> Sides:
        """See `Moments.sided`."""


@dataclass(frozen=True, kw_only=True)
class FitMetric:
    """A measure of the error of a fit, and what it needs from the statistics.

    `||G^(1/2) (W - V) Sigma^(1/2)||_F`, where the metric defines `G` and `Sigma`. For your own metric, make a subclass
    with its own `of`, and put it into `METRICS` by its name, which plans and files store.

    Attributes:
        name: as users write it.
        needs_statistics: whether it needs moments of the inputs.
        needs_gradients: whether outputs are weighted by the gradients of the loss, which the statistics must hold.
        corrects_bias: whether a layer without a bias is given one, which corrects the mean of the output.
        shrinkable: whether shrinking it towards the weight metric changes it.
        diagonal: whether covariances between inputs are ignored.
        centred: whether fits take the mean of the input out of its moment.
        needs_weight_gradients: whether these are to be gradients of the weights, too.
        kind: a metric of the literature, one of `statistics.published.KINDS`; None for others.

    Example:
        >>> get_metric("fisher").needs_gradients
        True
    """

    name: str
    summary: str
    needs_statistics: bool = True
    needs_gradients: bool = False
    corrects_bias: bool = True
    shrinkable: bool = True
    diagonal: bool = False
    centred: bool = True
    needs_weight_gradients: bool = False
    kind: str | None = None

    def of(self, moments: HasSides[Sides], shrink: float = 0.0) -> Sides:
        """The metric of a site's inputs and outputs from its moments; sequential fits have moments in any metric.

        Args:
            shrink: share of the weight metric, from 0 to 1.

        Raises:
            ValueError: for a share outside that range, or moments that lack the gradients that the metric needs.
        """
        if self.kind is not None:
            return moments.sided(shrink, kind=self.kind)
        return moments.sided(shrink, diagonal=self.diagonal, weighted=self.needs_gradients)

    def __str__(self) -> str:
        return self.name


METRICS: dict[str, FitMetric] = {
    metric.name: metric
    for metric in (
        FitMetric(name="input", summary="error of each layer's output"),
        FitMetric(name="diagonal", summary="the same without covariances of the input", diagonal=True),
        FitMetric(
            name="fisher", summary="the same, outputs weighted by the gradients of the loss", needs_gradients=True
        ),
        FitMetric(
            name="weight",
            summary="error of each layer's weight",
            needs_statistics=False,
            corrects_bias=False,
            shrinkable=False,
        ),
        FitMetric(
            name="without_bias",
            summary="as input, and layers without a bias are given none",
            corrects_bias=False,
        ),
        FitMetric(
            name="uncentred",
            summary="error of each layer's output, its mean among it: no bias is corrected (SVD-LLM)",
            corrects_bias=False,
            centred=False,
        ),
        FitMetric(
            name="magnitude",
            summary="error of each layer's weight, inputs weighted by their mean magnitude (ASVD)",
            corrects_bias=False,
            centred=False,
            kind="magnitude",
        ),
        FitMetric(
            name="pooled",
            summary="error of each layer's output, by the covariance within parts of the data (Bolaco)",
            kind="pooled",
        ),
        FitMetric(
            name="rows",
            summary="error of each layer's weight, its rows weighted by squared gradients (FWSVD)",
            needs_gradients=True,
            corrects_bias=False,
            shrinkable=False,
            centred=False,
            needs_weight_gradients=True,
            kind="rows",
        ),
    )
}


def get_metric(metric: str | FitMetric, where: str = "") -> FitMetric:
    """A metric by its name, or itself; a ValueError for an unknown name."""
    if isinstance(metric, FitMetric):
        return metric
    check_name("metric", metric, METRICS, where)
    return METRICS[metric]
