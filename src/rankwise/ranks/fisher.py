"""The least loss of the network by second derivatives: each site's error times how much its output matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..plan import DENSE
from .base import Candidates, Pick, Problem, Rule
from .budgeted import least


@dataclass(frozen=True, kw_only=True)
class Fisher(Rule):
    """`min sum_i E_i error_i(o_i)` within all budgets, `E_i = 1/2 trace(G_i W_i Sigma_i W_i^T)` the Fisher energy.

    `E_i error_i` is the loss that the option costs, to second order and with all other sites dense. The metric "fisher"
    measures the error in the same `G`. In other metrics the loss of a matrix has a closed form of its own
    (`Format.predicted`), and other errors are assumed to spread over the outputs as the outputs themselves do. So
    errors of different sites are comparable without trying a plan. Losses of sites are assumed to add up.

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
        losses = [_losses(site, energy) for site, energy in zip(problem.sites, energies, strict=True)]
        trusted = [energy ** (self.power - 1) if energy else 1.0 for energy in energies]
        weighed = [[trust * loss for loss in own] for trust, own in zip(trusted, losses, strict=True)]
        return [
            pick
            if site.options[pick.option].format == DENSE or len(site.options) == 1
            else Pick(pick.option, f"fisher: predicted loss {own[pick.option]:.2g}, {pick.why}")
            for site, pick, own in zip(problem.sites, least(problem, weighed), losses, strict=True)
        ]


def _losses(site: Candidates, energy: float) -> list[float]:
    """The predicted loss of every option."""
    known = site.predicted() if len(site.options) > 1 else {}
    return [known.get((option.format, option.ranks), energy * option.error) for option in site.options]
