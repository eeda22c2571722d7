"""The same share of every site: the baseline that other rules must beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..plan import DENSE
from .base import Candidates
from .free import SLACK, FreeRule


@dataclass(frozen=True, kw_only=True)
class Uniform(FreeRule):
    """`min error(o)  subject to  params(o) <= ratio params(dense)` for every site alone; the budget moves the ratio.

    The ratio is one of parameters, not of ranks: half of the full rank saves nothing on a square layer. It applies to
    every format. As a floor it asks for at least that share.

    Args:
        ratio: share of each site's parameters to keep, above 0 and at most 1.

    Raises:
        ValueError: for a ratio outside that range.
    """

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "the same share of every layer's parameters; all formats"

    ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"rule 'uniform': ratio is {self.ratio}; it must be above 0 and at most 1")

    def scales(self, site: Candidates, prices: Sequence[float]) -> list[float]:
        return [
            math.inf if option.format == DENSE else option.params / site.dense.params / self.ratio
            for option in site.options
        ]

    def pick(self, site: Candidates, scales: Sequence[float], prices: Sequence[float], scale: float) -> int:
        within = [index for index, own in enumerate(scales) if own <= scale + SLACK]
        if not within:
            return min(range(len(scales)), key=scales.__getitem__)
        return min(within, key=lambda index: (site.options[index].error, prices[index]))

    def wish(self, site: Candidates, index: int) -> str:
        return f"{site.options[index].params / site.dense.params:.0%} of its parameters"
