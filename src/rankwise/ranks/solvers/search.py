"""The best plan among those that lose at most a given amount, by two lists of states.

Every site is added to one of two lists, the shorter one, and plans are pairs of their states: so a list needs to hold
about the root of all combinations. States whose lower bounds are too large are left out. If there are more pairs than
may be looked at, lists are thinned; then the best plan may be missed.

Letters: S sites, O options, T multipliers, K states, P pairs, U units.

Sources: Horowitz and Sahni, "Computing partitions with applications to the knapsack problem", 1974 (two lists); Dyer,
Riha and Walker, "A hybrid dynamic programming / branch-and-bound algorithm for the multiple-choice knapsack problem",
1995 (states with bounds).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from .bounds import Bounds
from .padding import Tables
from .states import States


@dataclass
class Search:
    """A search for the best plan.

    Attributes:
        problem: the options that such a plan can have.
        bounds: lower bounds, and the limits with room for rounding.
        most: what the plan may lose.
        work: pairs that may still be looked at.
        is_whole: whether all pairs were looked at so far.
    """

    problem: Tables
    bounds: Bounds
    most: float
    work: int
    is_whole: bool = field(default=True, init=False)

    def best(self) -> Tensor | None:
        """The plan with the least loss, of equal ones the cheapest; None if none was found."""
        problem, least_TS = self.problem, self.bounds.least(self.problem)
        reduced_SO, dual = self.bounds.reduced(problem)
        spare = self.most - dual
        count_S = (problem.losses_SO < math.inf).sum(1)
        fixed_S = count_S == 1
        options = {
            site: States(problem.losses_SO[site, :own], problem.costs_USO[:, site, :own], reduced_SO[site, :own])
            for site, own in enumerate(count_S.tolist())
            if own > 1
        }
        fixed = States.one(problem.losses_SO[fixed_S, 0].sum(), problem.costs_USO[:, fixed_S, 0].sum(1))
        halves = [fixed, States.one(torch.zeros_like(fixed.losses_K[0]), torch.zeros_like(fixed.costs_UK[:, 0]))]
        rests_T = [least_TS[:, ~fixed_S].sum(1), least_TS.sum(1)]
        # Sites whose options differ most in cost come first: bounds leave few of these, and then few of the others.
        order = sorted(options, key=lambda site: -self.bounds.spread(options[site].costs_UK))
        for place, site in enumerate(order):
            half = int(len(halves[1]) < len(halves[0]))
            rests_T[half] = rests_T[half] - least_TS[:, site]
            most = spare - float(halves[1 - half].excess_K.min())
            states = self._affordable(halves[half], options[site], most, self.work // (len(order) - place))
            halves[half] = states.extended(site, options[site], most, partial(self._is_good, rests_T[half]))
            if not len(halves[half]):
                return None
        return self._joined(halves[0], halves[1], spare)

    def _is_good(self, rest_T: Tensor, losses_P: Tensor, costs_UP: Tensor) -> Tensor:
        return losses_P + self.bounds.rest(rest_T, costs_UP) <= self.most

    def _affordable(self, states: States, options: States, most: float, share: int) -> States:
        """The states, thinned if more pairs than this share of the work would have to be looked at."""
        count, share = states.count(options.excess_K, most), max(share, 1)
        self.work -= min(count, share)
        if count <= share or len(states) == 1:
            return states
        self.is_whole = False
        return states.thinned(math.ceil(count / share))

    def _joined(self, one: States, other: States, spare: float) -> Tensor | None:
        """The best pair of states of both lists that meets all limits."""
        if len(one.costs_UK) == 1:  # the most expensive partner that fits loses least
            room_K = self.bounds.limits_U - one.costs_UK[0]
            partner_K = len(other) - torch.searchsorted(other.costs_UK[0].flip(0), room_K, right=True)
            one_P, other_P = torch.arange(len(one)), partner_K
        else:
            one = self._affordable(one, other, spare, self.work)
            one_P, other_P = self._pairs_within(one, other, spare)
        while True:
            left_P = other_P < len(other)
            one_P, other_P = one_P[left_P], other_P[left_P]
            if not len(one_P):
                return None
            losses_P = one.losses_K[one_P] + other.losses_K[other_P]
            ties_P = (losses_P == losses_P.min()).nonzero()[:, 0]
            costs_P = (one.costs_UK[:, one_P[ties_P]] + other.costs_UK[:, other_P[ties_P]]).sum(0)
            place = int(ties_P[costs_P.argmin()])
            chosen_S = torch.zeros(len(self.problem.losses_SO), dtype=torch.long)
            for site, option in {**one.options(int(one_P[place])), **other.options(int(other_P[place]))}.items():
                chosen_S[site] = option
            if self.problem.fits(chosen_S):
                return chosen_S
            other_P[place] += 1  # added in another order, the costs exceed a limit by rounding

    def _pairs_within(self, one: States, other: States, spare: float) -> Tensor:
        """Pairs of states of both lists within all limits, the best among them, 2 x P."""
        kept, least = [torch.zeros(2, 0, dtype=torch.long)], math.inf
        for one_P, other_P in one.pairs(other.excess_K, spare):
            losses_P = one.losses_K[one_P] + other.losses_K[other_P]
            costs_UP = one.costs_UK[:, one_P] + other.costs_UK[:, other_P]
            good_P = (losses_P <= least) & (costs_UP <= self.bounds.limits_U[:, None]).all(0)
            if bool(good_P.any()):
                kept.append(torch.stack([one_P, other_P])[:, good_P])
                least = float(losses_P[good_P].min())
        return torch.cat(kept, 1)
