"""Kernels that are multilinear in their factors, fitted in a metric by damped least squares; many fits side by side.

`min ||(W - V) Sigma^(1/2)||_F^2` over `V = sum over the bonds of the product of the factors`, written as an equation
of index letters, "ta,cb,abhw->tchw". All factors move at once, by steps of `gauss_newton`, damped as by Levenberg and
Marquardt: a step that does not lower the error is refused and tried again with more damping. A step whose parts cancel
each other is tried again with the factors drawn to zero. Large problems in the weight metric take one factor after the
other instead, in closed form, and jump further along their way if that lowers the error.

Problems of one equation and equal sizes are solved as a batch. Each accepts, refuses and stops by itself; what has
stopped leaves the batch. The host reads a few numbers once in a sweep.

Letters: G problems, T outputs, D inputs.

Sources: Marquardt, "An Algorithm for Least-Squares Estimation of Nonlinear Parameters", 1963; Nielsen, "Damping
Parameter in Marquardt's Method", 1999; Mitchell, Ye, De Sterck, "Nesterov Acceleration of Alternating Least Squares for
Canonical Tensor Decomposition", 2018 (the jumps); Kalle, Rudkiewicz, Ouerfelli, Tamaazousti, 2025, arXiv 2511.04494
(the metric).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .block import Block
from .equation import BATCH, Equation, arranged, contract, equalised
from .gauss_newton import Linearised, is_small
from .metric import Identity, Metric
from .problems import PROXIMAL, Problems
from .stacked import stacked

# Damping of the first step, and where a fit gives up; both relative to the mean diagonal of a block.
DAMPING, MOST_DAMPING = 0.1, 1e6
# How strongly factors are drawn to zero once parts cancel, where that is forgotten, and where a fit gives up.
PULL, LEAST_PULL, MOST_PULL = 1e-5, 1e-7, 1e2
# A fit ends after this many sweeps in a row that gain too little.
PATIENCE = 3
# After this many sweeps, one more conjugate gradient step: near the solution longer steps are right.
LONGER = 4
# Starts race: after so many sweeps the better half goes on, until one is left.
RACE = 10
# Below this fraction of the kernel's energy, the difference of two energies is rounding; the error is computed anew.
DIFFERENCE = 1e-5


class Effort(NamedTuple):
    """How long to fit: sweeps at most, the fall of the error below which they end, conjugate gradient steps of each."""

    sweeps: int = 50
    tolerance: float = 1e-4
    steps: int = 8


class Problem(NamedTuple):
    """A kernel T x D, its metric, the factors to start from, each a list, and the squared error to stop at."""

    W_TD: Tensor
    metric: Metric
    starts: Sequence[Sequence[Tensor]]
    enough: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """Factors, the squared error in the metric, and its history by sweep."""

    factors: list[Tensor]
    error: float
    history: list[float]


def fit(
    W_TD: Tensor,
    metric: Metric,
    equation: Equation,
    start: Sequence[Tensor],
    effort: Effort = Effort(),  # noqa: B008
    enough: float = 0.0,
) -> Fitted:
    """`fits` of one problem from one start."""
    return fits([Problem(W_TD, metric, [start], enough)], equation, effort)[0]


def fits(problems: Sequence[Problem], equation: Equation, effort: Effort = Effort()) -> list[Fitted]:  # noqa: B008
    """Least squares in all factors, each problem from the best of its starts.

    Args:
        problems: of equal sizes.
        equation: letters of the factors.
        effort: see `Effort`.

    Returns:
        Of each problem the factors, equal in norm for each bond state; the error never rises from sweep to sweep.
    """
    owners = [number for number, problem in enumerate(problems) for _ in problem.starts]
    shared = all(problem.W_TD is problems[0].W_TD and problem.metric is problems[0].metric for problem in problems)
    kernels = [problems[0].W_TD] if shared else [problems[owner].W_TD for owner in owners]
    metrics = [problems[0].metric] if shared else [problems[owner].metric for owner in owners]
    starts = [start for problem in problems for start in problem.starts]
    factors = [torch.stack(parts).double() for parts in zip(*starts, strict=True)]
    split, sizes = equation.split, equation.sizes(factors)
    W = torch.stack(kernels).double().reshape(len(kernels), *(sizes[letter] for letter in equation.kernel))
    outputs = math.prod(sizes[letter] for letter in split.outputs)
    W_GTD = arranged(W, BATCH + equation.kernel, BATCH + split.kernel).reshape(len(W), outputs, -1)
    stack = Problems(W_GTD, stacked(metrics), split)
    enough_G = torch.tensor([problems[owner].enough for owner in owners]).to(W_GTD)
    run = Descent(stack, factors, enough_G, owners, effort)
    while run.is_race():
        run.sweep(RACE)
        run.halve()
    run.sweep(effort.sweeps)
    return [run.results[number] for number in range(len(problems))]


class Descent:
    """A batch on its way down.

    Args:
        problems: what is fitted.
        factors: starts.
        enough_G: squared errors to stop at.
        owners: number of the result that each problem of the batch is for.
        effort: see `Effort`.
    """

    def __init__(
        self, problems: Problems, factors: list[Tensor], enough_G: Tensor, owners: Sequence[int], effort: Effort
    ) -> None:
        self.problems, self.owners, self.effort = problems, list(owners), effort
        self.results: dict[int, Fitted] = {}
        self.swept = 0
        total_G = problems.total_G.expand(len(owners))
        # Nothing to fit: the kernel is zero, or no input was ever seen.
        empty_G = (total_G <= 0).reshape(-1, *[1] * (factors[0].dim() - 1))
        factors = equalised(problems.equation, [torch.where(empty_G, 0.0, factors[0]), *factors[1:]])
        self.factors, self.error_G = problems.settled(factors)
        self.parts_G = problems.parts(self.factors)
        self.enough_G = torch.maximum(enough_G, 1e-14 * total_G)
        self.damping_G, self.growth_G = torch.full_like(total_G, DAMPING), torch.full_like(total_G, 2.0)
        self.pull_G, self.small_G = torch.zeros_like(total_G), torch.zeros_like(total_G)
        self.histories: list[list[float]] = [[] for _ in owners]
        small = is_small(problems.equation, problems.equation.sizes(factors))
        alternates = isinstance(problems.metric, Identity) and not small
        self.moves = Alternating() if alternates else Together(0 if small else effort.steps)
        self.near, self.good_G = True, torch.ones_like(self.error_G, dtype=torch.bool)
        self._read()

    def sweep(self, count: int) -> None:
        """So many moves of all factors; what stops is taken out into the results."""
        for _ in range(count):
            if not self.owners:
                return
            self._move()
            self.swept += 1
            self._read()

    def _move(self) -> None:
        tried, tried_error_G, expected_G = self.moves(self)
        parts_G = self.problems.parts(tried)
        cancels_G = parts_G > self.parts_G.clamp_min(1.0)
        fell_G = tried_error_G < self.error_G
        good_G = fell_G & ~cancels_G
        gained_G = torch.where(good_G, self.error_G - tried_error_G, 0.0)
        small_G = gained_G <= self.effort.tolerance * self.error_G
        ratio_G = (gained_G / expected_G.double().clamp_min(torch.finfo(torch.float32).tiny)).clamp(0, 1)
        self.small_G = torch.where(good_G, torch.where(small_G, self.small_G + 1, 0.0), self.small_G)
        eased_G = self.damping_G * (1 - (2 * ratio_G - 1) ** 3).clamp_min(0.1)
        strained_G = torch.where(fell_G, self.damping_G, self.damping_G * self.growth_G)
        self.damping_G = torch.where(good_G, eased_G.clamp_min(1e-9), strained_G)
        self.growth_G = torch.where(good_G | fell_G, 2.0, 2 * self.growth_G)
        drawn_G = (4 * self.pull_G).clamp_min(PULL)
        eased_G = torch.where(self.pull_G > 2 * LEAST_PULL, 0.5 * self.pull_G, 0.0)
        self.pull_G = torch.where(good_G | ~fell_G, eased_G, drawn_G)
        tried = equalised(self.problems.equation, tried)
        self.factors = [
            torch.where(good_G.reshape(-1, *[1] * (new.dim() - 1)), new, old)
            for new, old in zip(tried, self.factors, strict=True)
        ]
        self.error_G = torch.where(good_G, tried_error_G, self.error_G)
        self.parts_G = torch.where(good_G, parts_G, self.parts_G)
        self.good_G = good_G

    def _read(self) -> None:
        """The one look of the host in a sweep: records errors, and takes out what has stopped."""
        reached_G = self.error_G <= self.enough_G
        stops_G = (self.small_G >= PATIENCE) | ~torch.isfinite(self.error_G)
        stops_G |= (self.damping_G > MOST_DAMPING) | (self.pull_G > MOST_PULL)
        near_G = self.error_G < DIFFERENCE * self.problems.total_G
        flags = [flag_G.double() for flag_G in (reached_G, stops_G, near_G, self.good_G)]
        errors, reached, stops, near, good = torch.stack([self.error_G, *flags]).tolist()
        for history, error in zip(self.histories, errors, strict=True):
            history.append(error)
        self.near = any(near)
        self.moves.note(self.good_G, any(good))
        # Once one start of a problem has reached what is asked, its others need not go on.
        done = {owner for owner, flag in zip(self.owners, reached, strict=True) if flag}
        last = self.swept >= self.effort.sweeps
        self._take_out([n for n, owner in enumerate(self.owners) if last or stops[n] or owner in done])

    def _take_out(self, places: Sequence[int]) -> None:
        if not places:
            return
        some = torch.tensor(places, device=self.error_G.device)
        factors = [factor[some] for factor in self.factors]
        errors = self.problems.at(some).error(factors).tolist()
        for number, place in enumerate(places):
            found = Fitted([factor[number] for factor in factors], errors[number], self.histories[place])
            found.history[-1] = found.error
            owner = self.owners[place]
            if owner not in self.results or found.error < self.results[owner].error:
                self.results[owner] = found
        self._keep([place for place in range(len(self.owners)) if place not in set(places)])

    def _keep(self, places: Sequence[int]) -> None:
        """Only these problems go on."""
        kept = torch.tensor(places, dtype=torch.long, device=self.error_G.device)
        self.owners = [self.owners[place] for place in places]
        self.histories = [self.histories[place] for place in places]
        self.problems, self.factors = self.problems.at(kept), [factor[kept] for factor in self.factors]
        for name in ("error_G", "parts_G", "enough_G", "damping_G", "growth_G", "pull_G", "small_G"):
            setattr(self, name, getattr(self, name)[kept])
        self.moves.keep(kept)

    def is_race(self) -> bool:
        """Whether any problem still goes on from several starts."""
        return len(set(self.owners)) < len(self.owners)

    def halve(self) -> None:
        """Of all starts of a problem, the better half goes on; none that is above a finished one, if one is left."""
        errors, left = self.error_G.tolist(), dict[int, list[int]]()
        for place in sorted(range(len(errors)), key=lambda place: (errors[place], place)):
            left.setdefault(self.owners[place], []).append(place)
        self._take_out(sorted(place for places in left.values() for place in places[(len(places) + 1) // 2 :]))


class Together:
    """A damped Gauss-Newton step: directly, or by conjugate gradients."""

    def __init__(self, steps: int) -> None:
        self.steps, self.count = steps, 0
        self.linear: Linearised | None = None
        self.change_GN: Tensor | None = None

    def __call__(self, run: Descent) -> tuple[list[Tensor], Tensor, Tensor]:
        if self.linear is None:
            steps = self.steps and self.steps + self.count // LONGER
            self.linear = Linearised(run.problems, run.factors, steps)
        self.change_GN, expected_G = self.linear.step(run.damping_G, run.pull_G, self.change_GN)
        tried, error_G = run.problems.settled(self.linear.moved(self.change_GN), run.near or not self.steps)
        self.count += 1
        return tried, error_G, expected_G

    def note(self, good_G: Tensor, any_good: bool) -> None:
        """What was accepted: a refused change is no direction to go on in."""
        if self.change_GN is not None:
            self.change_GN = torch.where(good_G[:, None], self.change_GN, 0.0) if self.steps else None
        self.linear = None if any_good else self.linear

    def keep(self, kept: Tensor) -> None:
        self.linear = None
        self.change_GN = None if self.change_GN is None else self.change_GN[kept]


class Alternating:
    """One factor after the other in the weight metric, then a jump further along the way from the sweep before.

    A jump that helps makes the next one 1.5 times as long, any other half as long.
    """

    def __init__(self) -> None:
        self.jump_G: Tensor | None = None
        self.swept: list[Tensor] = []

    def __call__(self, run: Descent) -> tuple[list[Tensor], Tensor, Tensor]:
        problems, equation, moved = run.problems, run.problems.equation, list(run.factors)
        kernel = problems.terms(moved)[0][0][:1] + equation.kernel
        W = (kernel, problems.W_GTD.reshape(len(problems.W_GTD), *(equation.sizes(moved)[x] for x in equation.kernel)))
        last = equation.output_factor
        if last is not None:
            reached = BATCH + equation.bonds(equation.factors[last]) + equation.inputs
            W = (reached, contract([W, (BATCH + equation.factors[last], moved[last])], reached))
        for k, letters in enumerate(equation.factors):
            if k == last:
                continue
            block = Block(problems, moved, k)
            others = [term for n, term in enumerate(problems.terms(moved)) if n not in (k, last)]
            moved[k] = block.solved(moved[k], contract([W, *others], BATCH + letters), PROXIMAL)
        moved, error_G = problems.settled(moved, run.near)
        before, self.swept = self.swept, moved
        self.jump_G = torch.ones_like(error_G) if self.jump_G is None else self.jump_G
        if before:
            shape = [[-1, *[1] * (factor.dim() - 1)] for factor in moved]
            ahead = [
                after + self.jump_G.reshape(s) * (after - old)
                for s, old, after in zip(shape, before, moved, strict=True)
            ]
            ahead, ahead_error_G = problems.settled(ahead, run.near)
            helps_G = ahead_error_G < error_G
            self.jump_G = self.jump_G * torch.where(helps_G, 1.5, 0.5)
            moved = [torch.where(helps_G.reshape(s), a, b) for s, a, b in zip(shape, ahead, moved, strict=True)]
            error_G = torch.where(helps_G, ahead_error_G, error_G)
        return moved, error_G, run.error_G - error_G

    def note(self, good_G: Tensor, any_good: bool) -> None:
        pass

    def keep(self, kept: Tensor) -> None:
        self.swept = [factor[kept] for factor in self.swept]
        self.jump_G = None if self.jump_G is None else self.jump_G[kept]
