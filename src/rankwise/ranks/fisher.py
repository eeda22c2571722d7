"""The least loss of the network, as far as second derivatives tell: each site's error times what its output matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..plan import DENSE
from .base import Pick, Problem, Rule
from .budgeted import least


@dataclass(frozen=True, kw_only=True)
class Fisher(Rule):
    """`min sum_i E_i error_i(o_i)` within all budgets, `E_i = 1/2 trace(G_i W_i Sigma_i W_i^T)` the Fisher energy.

    `E_i error_i` is the loss that the option costs, to second order and with all other sites dense: in the metric
    "fisher" the error is measured in the same `G`, in others it is taken to spread over the outputs as they are. So
    errors of different sites are comparable without a single try. Losses of several sites are taken to add up.

    Source: the Kronecker-factored Fisher information of Martens, Grosse, 2015, arXiv 1503.05671, and Grosse, Martens,
    2016, arXiv 1602.01407, in the place of the errors of `knapsack`.
    """

    name: ClassVar[str] = "fisher"
    summary: ClassVar[str] = "least loss of the network that second derivatives predict; needs gradients"
    needs_gradients: ClassVar[bool] = True

    def choose(self, problem: Problem) -> list[Pick]:
        losses = []
        for site in problem.sites:
            energy = site.importance() if len(site.options) > 1 else 0.0
            losses.append([energy * option.error for option in site.options])
        return [
            pick
            if site.options[pick.option].format == DENSE or len(site.options) == 1
            else Pick(pick.option, f"fisher: predicted loss {own[pick.option]:.2g}, {pick.why}")
            for site, pick, own in zip(problem.sites, least(problem, losses), losses, strict=True)
        ]
