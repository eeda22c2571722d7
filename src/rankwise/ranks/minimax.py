"""The largest error of any site as small as the budgets allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .base import Candidates
from .free import FreeRule


@dataclass(frozen=True, kw_only=True)
class Minimax(FreeRule):
    """`min max_i error_i(o_i)  subject to  sum_i cost_iu(o_i) <= limit_u`: bisection on the common threshold.

    The published rule compares `sigma_{r+1} / sigma_1`; this one the relative squared errors of the sites' outputs in
    the metric, which every format has; for tied sites the mean.

    Source: Liebenwein, Maalouf, Gal, Feldman, Rus, "Compressing Neural Networks: Towards Determining the Optimal
    Layer-wise Decomposition", 2021, arXiv 2107.11442 (ALDS).
    """

    name: ClassVar[str] = "minimax"
    summary: ClassVar[str] = "the largest error of any layer as small as possible; all formats"
    needs_budget: ClassVar[bool] = True

    def scales(self, site: Candidates, prices: Sequence[float]) -> list[float]:
        return [site.members / option.error if option.error > 0 else math.inf for option in site.options]

    def wish(self, site: Candidates, index: int) -> str:
        return "no layer may be worse than the worst"
