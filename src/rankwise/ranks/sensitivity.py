"""The least loss of the whole network, estimated by factorising one site at a time."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..plan import DENSE, Option
from .base import Candidates, Pick, Problem, Rule
from .budgeted import least

TINY = 1e-12  # losses and errors below are rounding; it keeps their logarithms finite


@dataclass(frozen=True, kw_only=True)
class Sensitivity(Rule):
    """`min sum_i loss_i(o_i)` within all budgets, `loss_i` the network's loss with only site i factorised.

    A few options of each site are tried, spread evenly in the logarithm of their errors. Between them the logarithm of
    the loss is assumed linear in that of the error; beyond them the loss is proportional to the error, as if it were
    quadratic around the dense network. So every option of every format gets a loss, and if `evaluate` remembers its
    answers, one try serves all budgets. Losses of sites are assumed to add up.

    Args:
        probes: options of each site to try, at least 1.

    Raises:
        ValueError: for fewer probes.

    Source: the probes of Yuan et al., "ASVD: Activation-aware Singular Value Decomposition for Compressing Large
    Language Models", 2023, arXiv 2312.05821; the interpolation in the error and the knapsack are ours.
    """

    name: ClassVar[str] = "sensitivity"
    summary: ClassVar[str] = "least sum of the network's losses with one layer factorised at a time; tries plans"
    needs_evaluate: ClassVar[bool] = True

    probes: int = 3

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"rule 'sensitivity': probes is {self.probes}; at least 1 is needed")

    def choose(self, problem: Problem) -> list[Pick]:
        losses = [self.losses(problem, site) for site in problem.sites]
        picks = least(problem, losses)
        return [
            pick if site.options[pick.option].format == DENSE else Pick(pick.option, _why(pick, own))
            for site, pick, own in zip(problem.sites, picks, losses, strict=True)
        ]

    def losses(self, problem: Problem, site: Candidates) -> list[float]:
        """The loss of every option of a site, tried or interpolated."""
        if len(site.options) == 1:
            return [0.0]
        assert problem.evaluate is not None
        tried = [
            (option.error, problem.evaluate(problem.plan({site.name: option}))) for option in self._probed(site.options)
        ]
        return [0.0 if option.format == DENSE else interpolated(tried, option.error) for option in site.options]

    def _probed(self, options: Sequence[Option]) -> list[Option]:
        """Options whose errors are spread evenly in logarithm, with both ends; of equal errors the cheaper one."""
        ordered = sorted(
            (option for option in options if option.format != DENSE), key=lambda option: (option.error, option.params)
        )
        logs = [math.log(max(option.error, TINY)) for option in ordered]
        if self.probes == 1:
            wanted = [(logs[0] + logs[-1]) / 2]
        else:
            wanted = [logs[0] + (logs[-1] - logs[0]) * k / (self.probes - 1) for k in range(self.probes)]
        chosen = {min(range(len(logs)), key=lambda place: (abs(logs[place] - log), place)) for log in wanted}
        return [ordered[place] for place in sorted(chosen)]


def interpolated(tried: Sequence[tuple[float, float]], error: float) -> float:
    """The loss at an error, between points that were tried; it never falls as the error grows.

    Args:
        tried: pairs (error, loss), by ascending error.
        error: relative squared error of an option.

    Example:
        >>> tried = [(0.01, 1.0), (0.1, 100.0)]
        >>> [round(interpolated(tried, error), 6) for error in (0.005, 0.1**1.5, 0.2)]
        [0.5, 10.0, 200.0]
    """
    errors = [math.log(max(point, TINY)) for point, _ in tried]
    losses: list[float] = []
    for _, loss in tried:
        losses.append(max(math.log(max(loss, TINY)), losses[-1] if losses else -math.inf))
    log = math.log(max(error, TINY))
    place = bisect_left(errors, log)
    if place == 0:
        return math.exp(losses[0] + log - errors[0])
    if place == len(errors):
        return math.exp(losses[-1] + log - errors[-1])
    part = (log - errors[place - 1]) / (errors[place] - errors[place - 1])
    return math.exp(losses[place - 1] + part * (losses[place] - losses[place - 1]))


def _why(pick: Pick, losses: Sequence[float]) -> str:
    return f"sensitivity: loss {losses[pick.option]:.2g} of the network by itself, {pick.why}"
