"""Metrics of fits: what an error is measured in, by name in `METRICS`; known before PyTorch is imported.

Letters: see `statistics.moments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from .names import check_name

Sides = TypeVar("Sides", covariant=True)


class HasSides(Protocol[Sides]):
    """What the metric of a site is made from: `statistics.Moments`."""

    def sided(self, shrink: float, *, diagonal: bool = False, weighed: bool = False) -> Sides:
        """See `Moments.sided`."""


@dataclass(frozen=True, kw_only=True)
class FitMetric:
    """What the error of a fit is measured in, and what that asks of the statistics.

    `||G^(1/2) (W - V) Sigma^(1/2)||_F`, where a metric says what `G` and `Sigma` are. A metric of your own is a
    subclass with its own `of`; put it into `METRICS` by its name, which is what plans and files store.

    Attributes:
        name: as users write it.
        summary: for people.
        needs_statistics: whether moments of the inputs are needed.
        needs_gradients: whether outputs are weighed by the gradients of the loss, which the statistics must hold.
        corrects_bias: whether fits know the mean of the input, so that a bias can make up for the change of the weight.
        shrinkable: whether shrinking it towards the weight metric changes it.
        diagonal: whether covariances between inputs are left out.

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

    def of(self, moments: HasSides[Sides], shrink: float = 0.0) -> Sides:
        """The metric of both sides of a site from its moments; a sequential fit has moments in any metric.

        Args:
            moments: of the site.
            shrink: share of the weight metric, from 0 to 1.

        Raises:
            ValueError: for a share outside that range, or moments without gradients where they are needed.
        """
        return moments.sided(shrink, diagonal=self.diagonal, weighed=self.needs_gradients)

    def __str__(self) -> str:
        return self.name


METRICS: dict[str, FitMetric] = {
    metric.name: metric
    for metric in (
        FitMetric(name="input", summary="error of each layer's output"),
        FitMetric(name="diagonal", summary="the same without covariances of the input", diagonal=True),
        FitMetric(
            name="fisher", summary="the same, outputs weighed by the gradients of the loss", needs_gradients=True
        ),
        FitMetric(
            name="weight",
            summary="error of each layer's weight",
            needs_statistics=False,
            corrects_bias=False,
            shrinkable=False,
        ),
    )
}


def get_metric(metric: str | FitMetric, where: str = "") -> FitMetric:
    """A metric by its name; an object is returned as it is.

    Raises:
        ValueError: for a name that does not exist, with near ones and all that do.
    """
    if isinstance(metric, FitMetric):
        return metric
    check_name("metric", metric, METRICS, where)
    return METRICS[metric]
