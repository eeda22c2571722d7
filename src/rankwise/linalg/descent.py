"""A batch of multilinear fits on its way down: which steps are accepted, how they are damped, and when a fit ends.

A step that does not lower the error is refused, and tried again with more damping, as Levenberg and Marquardt do. A
step after which the parts of the kernel cancel each other is refused too, and tried again with the factors drawn to
zero. So a fit ends at a minimum, or where no damping helps, and never at the first refused step. Each problem accepts,
refuses and ends by itself; what has ended leaves the batch. The host reads a few numbers once in a sweep.

Letters: G problems.

Sources: Marquardt, "An Algorithm for Least-Squares Estimation of Nonlinear Parameters", 1963; Nielsen, "Damping
Parameter in Marquardt's Method", 1999.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .equation import equalised
from .gauss_newton import is_small
from .metric import Identity
from .moves import Alternating, Together
from .problems import Problems, Settled, per_problem

# The least damping, and where a fit gives up; relative to the mean diagonal of a block.
LEAST_DAMPING, MOST_DAMPING = 1e-9, 1e6
# How strongly factors are drawn to zero once parts cancel, where that is forgotten, and where a fit gives up.
PULL, LEAST_PULL, MOST_PULL = 1e-5, 1e-7, 1e2
# A fit ends after this many accepted sweeps in a row that gain too little.
PATIENCE = 3
# Below this fraction of the kernel's energy, the difference of two energies is rounding; the error is computed anew.
DIFFERENCE = 1e-5
# A squared error of this fraction of the kernel's energy is rounding.
ROUNDING = 1e-14


class Effort(NamedTuple):
    """How long to fit.

    Attributes:
        sweeps: at most so many.
        tolerance: relative fall of the squared error below which they end.
        steps: conjugate gradient steps of each, where steps are not solved directly.
        direct: numbers up to which they are.
        damping: of the first step; random starts are far from a minimum, and need more than others.
    """

    sweeps: int = 50
    tolerance: float = 1e-4
    steps: int = 8
    direct: int = 1024
    damping: float = 0.1


@dataclass(frozen=True)
class Fitted:
    """Factors, the squared error in the metric, and its history by sweep."""

    factors: list[Tensor]
    error: float
    history: list[float]


class Descent:
    """A batch on its way down.

    Args:
        problems: what is fitted.
        factors: to start from.
        enough_G: squared errors to stop at.
        owners: number of the result that each problem of the batch is for; several are the starts of one fit.
        effort: see `Effort`.

    Attributes:
        results: the best that has ended, by number.
    """

    def __init__(
        self, problems: Problems, factors: Sequence[Tensor], enough_G: Tensor, owners: Sequence[int], effort: Effort
    ) -> None:
        self.problems, self.owners, self.effort = problems, list(owners), effort
        self.results: dict[int, Fitted] = {}
        self.histories: list[list[float]] = [[] for _ in owners]
        self.swept, self.near = 0, True
        total_G = problems.total_G.expand(len(owners))
        # Nothing to fit: the kernel is zero, or no input was ever seen.
        first = torch.where(per_problem(total_G <= 0, factors[0]), 0.0, factors[0])
        self.here = problems.settled(equalised(problems.equation, [first, *factors[1:]]))
        self.parts_G = problems.parts(self.here.factors)
        self.enough_G = torch.maximum(enough_G, ROUNDING * total_G)
        self.damping_G, self.growth_G = torch.full_like(total_G, effort.damping), torch.full_like(total_G, 2.0)
        self.pull_G, self.small_G = torch.zeros_like(total_G), torch.zeros_like(total_G)
        self.good_G = torch.ones_like(total_G, dtype=torch.bool)
        small = is_small(problems.equation, problems.equation.sizes(factors), effort.direct)
        alternates = isinstance(problems.metric, Identity) and not small
        self.move = Alternating() if alternates else Together(0 if small else effort.steps)
        self._read()

    def sweep(self, count: int) -> None:
        """So many moves of all factors; what ends is taken out into the results."""
        for _ in range(count):
            if not self.owners:
                return
            self._judge(*self.move(self.problems, self.here, self.near, (self.damping_G, self.pull_G)))
            self.swept += 1
            self._read()

    def is_race(self) -> bool:
        """Whether a fit still goes on from several starts."""
        return len(set(self.owners)) < len(self.owners)

    def halve(self) -> None:
        """Of all starts of a fit, the better half goes on."""
        errors, ranked = self.here.error_G.tolist(), dict[int, list[int]]()
        for place in sorted(range(len(errors)), key=lambda place: (errors[place], place)):
            ranked.setdefault(self.owners[place], []).append(place)
        self._take_out(sorted(place for places in ranked.values() for place in places[(len(places) + 1) // 2 :]))

    def _judge(self, tried: Settled, expected_G: Tensor) -> None:
        """Accept or refuse what was tried, and damp what comes next."""
        parts_G = self.problems.parts(tried.factors)
        fell_G = tried.error_G < self.here.error_G
        good_G = fell_G & (parts_G <= self.parts_G.clamp_min(1.0))
        gained_G = torch.where(good_G, self.here.error_G - tried.error_G, 0.0)
        small_G = gained_G <= self.effort.tolerance * self.here.error_G
        self.small_G = torch.where(good_G, torch.where(small_G, self.small_G + 1, 0.0), self.small_G)
        # The nearer the decrease comes to what was expected, the less damping next time.
        share_G = (gained_G / expected_G.double().clamp_min(torch.finfo(torch.float32).tiny)).clamp(0, 1)
        eased_G = (self.damping_G * (1 - (2 * share_G - 1) ** 3).clamp_min(0.1)).clamp_min(LEAST_DAMPING)
        strained_G = torch.where(fell_G, self.damping_G, self.damping_G * self.growth_G)
        self.damping_G = torch.where(good_G, eased_G, strained_G)
        self.growth_G = torch.where(fell_G, 2.0, 2 * self.growth_G)
        eased_G = torch.where(self.pull_G > 2 * LEAST_PULL, 0.5 * self.pull_G, 0.0)
        self.pull_G = torch.where(good_G | ~fell_G, eased_G, (4 * self.pull_G).clamp_min(PULL))
        self.here = tried.where(good_G, self.here)
        self.parts_G = torch.where(good_G, parts_G, self.parts_G)
        self.good_G = good_G

    def _read(self) -> None:
        """The one look of the host in a sweep: records errors, and takes out what has ended."""
        error_G = self.here.error_G
        reached_G = error_G <= self.enough_G
        ends_G = (self.small_G >= PATIENCE) | ~torch.isfinite(error_G)
        ends_G |= (self.damping_G > MOST_DAMPING) | (self.pull_G > MOST_PULL)
        near_G = error_G < DIFFERENCE * self.problems.total_G
        flags = [flag_G.double() for flag_G in (reached_G, ends_G, near_G, self.good_G)]
        errors, reached, ends, near, good = torch.stack([error_G, *flags]).tolist()
        for history, error in zip(self.histories, errors, strict=True):
            history.append(error)
        self.near = any(near)
        self.move.note(self.good_G, any(good))
        # Once one start of a fit has reached what is asked, its others need not go on.
        done = {owner for owner, flag in zip(self.owners, reached, strict=True) if flag}
        last = self.swept >= self.effort.sweeps
        self._take_out([place for place, owner in enumerate(self.owners) if last or ends[place] or owner in done])

    def _take_out(self, places: Sequence[int]) -> None:
        """Compute errors anew, keep the best of each fit, and go on without these problems."""
        if not places:
            return
        some = torch.tensor(places, device=self.good_G.device)
        factors = equalised(self.problems.equation, [factor[some] for factor in self.here.factors])
        for number, error in enumerate(self.problems.at(some).error(factors).tolist()):
            owner, history = self.owners[places[number]], self.histories[places[number]]
            if owner not in self.results or error < self.results[owner].error:
                found = [factor[number] for factor in factors]
                self.results[owner] = Fitted(found, error, [*history[:-1], error])
        left = [place for place in range(len(self.owners)) if place not in set(places)]
        kept = torch.tensor(left, dtype=torch.long, device=self.good_G.device)
        self.owners, self.histories = [self.owners[n] for n in left], [self.histories[n] for n in left]
        self.problems, self.here = self.problems.at(kept), self.here.at(kept)
        for name, value in list(vars(self).items()):
            if name.endswith("_G"):
                setattr(self, name, value[kept])
        self.move.keep(kept)
