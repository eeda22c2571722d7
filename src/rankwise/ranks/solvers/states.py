"""Choices for some sites, with what they cost and lose; choices that another beats are left out.

Adding a site joins every state with every option, as far as they can be part of a plan that is good enough, and drops
what another state beats. So a list of states stands for all choices for its sites.

Letters: K states, O options of a site, or states of other sites, P pairs of them, U units, B states of a block.

Source: Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", 1995 (lists of states of the sites
that matter, bounded while they grow).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 128  # with several units, states are compared within blocks of this many
PAIRS = 1 << 20  # pairs that are looked at together: some ten megabytes


class Step(NamedTuple):
    """The site that was added, and for every state the one that it extends and the option of the site."""

    site: int
    before_K: Tensor
    option_K: Tensor


@dataclass(frozen=True)
class States:
    """States of some sites, by ascending loss; with one unit by descending cost, too.

    Attributes:
        losses_K, costs_UK: what a state loses and costs.
        excess_K: how far `loss + lambda cost` lies above the least of its sites.
        steps: how the states came about.
    """

    losses_K: Tensor
    costs_UK: Tensor
    excess_K: Tensor
    steps: tuple[Step, ...] = ()

    @classmethod
    def one(cls, loss: Tensor, costs_U: Tensor) -> States:
        """The one state of sites without a choice."""
        return cls(loss[None], costs_U[:, None], torch.zeros_like(loss)[None])

    def __len__(self) -> int:
        return len(self.losses_K)

    def count(self, excess_O: Tensor, most: float) -> int:
        """How many pairs of a state and an option have an excess of at most this much together."""
        return int(torch.searchsorted(self.excess_K.sort().values, most - excess_O, right=True).sum())

    def pairs(self, excess_O: Tensor, most: float) -> Iterator[tuple[Tensor, Tensor]]:
        """These pairs, as places of states and of options, in blocks."""
        excess_K, order_K = self.excess_K.sort(stable=True)
        count_O = torch.searchsorted(excess_K, most - excess_O, right=True)
        end_O = count_O.cumsum(0)
        first = 0
        while first < len(excess_O):
            done = end_O[first] - count_O[first]
            last = max(int(torch.searchsorted(end_O, done + PAIRS, right=True)), first + 1)
            option_P = torch.repeat_interleave(torch.arange(first, last), count_O[first:last])
            yield order_K[torch.arange(len(option_P)) - (end_O - count_O - done)[option_P]], option_P
            first = last

    def extended(self, site: int, options: States, most: float, good: Callable[[Tensor, Tensor], Tensor]) -> States:
        """The states of one more site.

        Args:
            site: its number.
            options: its options.
            most: the largest excess of a state.
            good: whether states of losses P and costs U x P can be part of a plan that is good enough, P.
        """
        parts = [(self.losses_K[:0], self.costs_UK[:, :0], torch.zeros(2, 0, dtype=torch.int32))]
        for before_P, option_P in self.pairs(options.excess_K, most):
            losses_P = self.losses_K[before_P] + options.losses_K[option_P]
            costs_UP = self.costs_UK[:, before_P] + options.costs_UK[:, option_P]
            kept_P = good(losses_P, costs_UP)
            pairs_2P = torch.stack([before_P, option_P]).int()
            parts.append((losses_P[kept_P], costs_UP[:, kept_P], pairs_2P[:, kept_P]))
        losses_K, costs_UK, (before_K, option_K) = (torch.cat(part, -1) for part in zip(*parts, strict=True))
        kept_K = _unbeaten(losses_K, costs_UK)
        step = Step(site, before_K[kept_K], option_K[kept_K])
        excess_K = self.excess_K[step.before_K] + options.excess_K[step.option_K]
        return States(losses_K[kept_K], costs_UK[:, kept_K], excess_K, (*self.steps, step))

    def thinned(self, group: int) -> States:
        """Of so many neighbours, which lose about the same, only the one with the least excess."""
        padded_K = pad(self.excess_K, (0, -len(self) % group), value=math.inf)
        kept_K = padded_K.view(-1, group).argmin(1) + torch.arange(0, len(padded_K), group)
        *steps, last = self.steps
        last = Step(last.site, last.before_K[kept_K], last.option_K[kept_K])
        return States(self.losses_K[kept_K], self.costs_UK[:, kept_K], self.excess_K[kept_K], (*steps, last))

    def options(self, place: int) -> dict[int, int]:
        """The option of every site in a state."""
        chosen = {}
        for site, before_K, option_K in reversed(self.steps):
            chosen[site], place = int(option_K[place]), int(before_K[place])
        return chosen


def _unbeaten(losses_K: Tensor, costs_UK: Tensor) -> Tensor:
    """Places of states that no other beats, by ascending loss; with several units some that others beat are left."""
    order_K = costs_UK.sum(0).argsort(stable=True)
    order_K = order_K[losses_K[order_K].argsort(stable=True)]
    costs_UK = costs_UK[:, order_K]
    if len(costs_UK) == 1:  # a state must cost less than all before it
        least_K = pad(costs_UK[0].cummin(0).values, (1, 0), value=math.inf)[:-1]
        return order_K[costs_UK[0] < least_K]
    blocks = [(part_UB[:, :, None] <= part_UB[:, None]).all(0).triu(1).any(0) for part_UB in costs_UK.split(BLOCK, 1)]
    return order_K[~torch.cat(blocks)]
