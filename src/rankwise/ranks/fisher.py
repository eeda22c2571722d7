"""The least loss of the network by second derivatives: each site's error times how much its output matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..plan import DENSE
from .base import Pick, Problem, Rule
from .budgeted import least


@dataclass(frozen=True, kw_only=True)
class Fisher(Rule):
    """`min sum_i E_i error_i(o_i)` within all budgets, `E_i = 1/2 trace(G_i W_i Sigma_i W_i^T)` the Fisher energy.

    `E_i error_i` is the loss that the option costs, to second order and with all other sites dense. The metric "fisher"
    measures the error in the same `G`; in other metrics it is assumed to spread over the outputs as the outputs
    themselves do. So errors of different sites are comparable without trying a plan. Losses of sites are assumed to add
    up.

    Attributes:
        power: exponent of the energies, 0 to 1; 0 treats all layers the same. Below 1 they are trusted less, because
            second derivatives say little about large errors.

    Source: the Kronecker-factored Fisher information of Martens, Grosse, 2015, arXiv 1503.05671, and Grosse, Martens,
    2016, arXiv 1602.01407, in the place of the errors of `knapsack`.
    """

    name: ClassVar[str] = "fisher"
    summary: ClassVar[str] = "least loss of the network that second derivatives predict; needs gradients"
    needs_gradients: ClassVar[bool] = True
    power: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.power <= 1:
            raise ValueError(f"rule 'fisher': power is {self.power}; it must be from 0 to 1")

    def choose(self, problem: Problem) -> list[Pick]:
        energies = [site.importance() if len(site.options) > 1 else 0.0 for site in problem.sites]
        losses = [
            [energy**self.power * option.error for option in site.options]
            for site, energy in zip(problem.sites, energies, strict=True)
        ]
        return [
            pick
            if site.options[pick.option].format == DENSE or len(site.options) == 1
            else Pick(pick.option, f"fisher: predicted loss {energy * site.options[pick.option].error:.2g}, {pick.why}")
            for site, pick, energy in zip(problem.sites, least(problem, losses), energies, strict=True)
        ]
