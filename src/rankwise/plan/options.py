"""Options, the ways to build a site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .plan import DENSE, PlanRow

if TYPE_CHECKING:  # plans are read before torch is imported
    from ..network.site import Site


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to build a site.

    Attributes:
        ranks: its ranks, () for dense.
        error: relative squared error of the site's output in the metric, 0 for dense.
    """

    format: str
    ranks: tuple[int, ...]
    params: int
    macs: int
    error: float


Curve = tuple[Option, ...]


def dense_option(site: Site) -> Option:
    """The option to leave the site dense."""
    return Option(format=DENSE, ranks=(), params=site.params, macs=site.macs, error=0.0)


def option_of(row: PlanRow) -> Option:
    """The option that a row of a plan chooses."""
    return Option(format=row.format, ranks=row.ranks, params=row.params, macs=row.macs, error=row.error or 0.0)
