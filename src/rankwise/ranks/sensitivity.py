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

    Losses of early blocks can count more, since all later ones see what they lose: with `depth`, block b of B counts
    `1 + depth (B - 1 - b) / (B - 1)` times. A block is what stands before the first number in a site's name, with it.

    Args:
        probes: options of each site to try, at least 1.
        depth: how much more the first block counts, at least 0.
        floor: least share of the parameters of a factorised site, 0 to 1; a third of it for budgets below a half.

    Raises:
        ValueError: for a setting outside its range, or a budget that the floor does not allow.

    Source: the probes of Yuan et al., "ASVD: Activation-aware Singular Value Decomposition for Compressing Large
    Language Models", 2023, arXiv 2312.05821; the interpolation in the error and the knapsack are ours. One probe,
    depth 5 and floor 0.3 are those of LEMS (Thoma et al., ICML 2026).
    """

    name: ClassVar[str] = "sensitivity"
    summary: ClassVar[str] = "least sum of the network's losses with one layer factorised at a time; tries plans"
    needs_evaluate: ClassVar[bool] = True

    probes: int = 3
    depth: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"rule 'sensitivity': probes is {self.probes}; at least 1 is needed")
        if not 0 <= self.depth < math.inf:
            raise ValueError(f"rule 'sensitivity': depth is {self.depth}; it must be at least 0 and finite")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"rule 'sensitivity': floor is {self.floor}; it must be from 0 to 1")

    def choose(self, problem: Problem) -> list[Pick]:
        floor = self.floor / 3 if _below_half(problem) else self.floor
        free = [site.name for site in problem.sites if len(site.options) > 1]
        factors = dict(zip(free, depths(free, self.depth), strict=True))
        losses = [
            [  # an infinite loss bars an option
                math.inf
                if option.format != DENSE and option.params < floor * site.dense.params
                else factors.get(site.name, 1.0) * loss
                for option, loss in zip(site.options, self.losses(problem, site), strict=True)
            ]
            for site in problem.sites
        ]
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


def _below_half(problem: Problem) -> bool:
    """Whether a budget is below half of what the sites cost if none is factorised."""
    return any(
        limit < sum(max(site.costs[unit]) for site in problem.sites) / 2 for unit, limit in problem.limits.items()
    )


def depths(names: Sequence[str], depth: float) -> list[float]:
    """`1 + depth (B - 1 - b) / (B - 1)` for every site, b the place of its block among B blocks.

    Example:
        >>> depths(["layers.0.up", "layers.0.down", "layers.1.up", "head"], 5.0)
        [6.0, 6.0, 3.5, 1.0]
    """
    blocks = [".".join(name.split(".")[: _numbered(name)]) for name in names]
    places = {block: place for place, block in enumerate(dict.fromkeys(blocks))}
    last = len(places) - 1
    return [1 + depth * (last - places[block]) / max(last, 1) for block in blocks]


def _numbered(name: str) -> int:
    """How many parts of a name lead to its first number, with it; all if it has none."""
    parts = name.split(".")
    return next((place + 1 for place, part in enumerate(parts) if part.isdigit()), len(parts))


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
