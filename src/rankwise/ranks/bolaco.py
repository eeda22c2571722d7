"""A share of the parameters for each type of layer, found by Bayesian optimisation: Bolaco's search as published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..linalg.expected_improvement import Box, minimise
from ..plan import DENSE
from .base import Candidates, Pick, Problem, Rule, described
from .bayesian import place
from .budgeted import check_limits

# Least and largest share of a layer's parameters; above 1 it stays dense.
LOW, HIGH = 0.2, 1.001
# What the plan may keep less than the budget, as a share of all sites.
SLACK = 0.1
# Length scales of the process: losses change faster with attention's shares in a box of side 0.8.
ATTENTION_SCALE, MLP_SCALE = 1.0, 0.8
# Types of layers that share a ratio: by the names that Llama, OPT, GPT-NeoX, BERT and T5 give them.
QUERY_KEY = frozenset({"q_proj", "k_proj", "query", "key", "q", "k"})
VALUE = frozenset({"v_proj", "value", "v"})
OUTPUT = frozenset({"o_proj", "out_proj", "o"})
ATTENTION_FIRST, MLP_FIRST = 0.5, 0.8


@dataclass(frozen=True, kw_only=True)
class Bolaco(Rule):
    """`min over ratios of evaluate(plan)  subject to  cost(plan) <= limit`, one ratio for each type of layer and depth.

    Types are the queries and keys together, the output of attention, and each layer of the MLP; values stay dense. A
    layer with ratio `x` keeps at most that share of its parameters, and stays dense from 1 on. Only plans that keep at
    most a tenth of all sites less than the budget are tried. The first has the ratios 0.5 in attention and 0.8 in the
    MLP, scaled to the budget. A Gaussian process with expected improvement proposes the others; the best one is taken.

    The published loss is the perplexity on held-out text and 0.001 times the divergence from the dense network
    (`evaluate.regularised_perplexity`).

    Args:
        trials: plans to try, at least 1.
        depths: groups of depth with ratios of their own, at least 1; published are 1 ("5x1") and 4 ("5x4").
        startup: trials before the process proposes, the first included; at least 1.
        seed: of the proposals.

    Raises:
        ValueError: for a setting outside its range, no layer of a known type, or a budget that no ratios meet.

    Source: Ji, Xiang, Li, Chen, Liu, Zhang, "Adaptive Feature-based Low-Rank Compression of Large Language Models via
    Bayesian Optimization", 2024, arXiv 2405.10616.
    """

    name: ClassVar[str] = "bolaco"
    summary: ClassVar[str] = "a ratio for each type of layer, by Bayesian optimisation; tries plans, transformers"
    needs_evaluate: ClassVar[bool] = True
    regularised: ClassVar[bool] = True

    trials: int = 50
    depths: int = 1
    startup: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trials", "depths", "startup"):
            if getattr(self, name) < 1:
                raise ValueError(f"rule 'bolaco': {name} is {getattr(self, name)}; at least 1 is needed")

    def choose(self, problem: Problem) -> list[Pick]:
        check_limits(problem)
        groups = self.groups(problem.sites)
        names = sorted({name for name in groups if name})
        if not names:
            raise ValueError(
                "rule 'bolaco': no layer may be factorised besides values of attention; take rule 'knapsack'"
            )
        at = [names.index(name) if name else None for name in groups]

        table = _Table.of(problem, at)

        def tried(ratios_D: Tensor) -> float:
            assert problem.evaluate is not None
            chosen = zip(problem.sites, table.chosen(ratios_D[None])[0].tolist(), strict=True)
            return problem.evaluate(problem.plan({site.name: site.options[index] for site, index in chosen}))

        attention = [name.startswith(("query", "output")) for name in names]
        scales = [ATTENTION_SCALE if each else MLP_SCALE for each in attention]
        lengths_D = torch.tensor(scales, dtype=torch.float64)
        low_D, high_D = torch.full_like(lengths_D, LOW), torch.full_like(lengths_D, HIGH)
        box = Box(low_D=low_D, high_D=high_D, lengths_D=lengths_D, feasible=table.feasible)
        first = table.scaled([ATTENTION_FIRST if each else MLP_FIRST for each in attention])
        best_D = minimise(tried, first, box, trials=self.trials, startup=self.startup, seed=self.seed)
        best = best_D.tolist()
        return [
            Pick(index, described(site, index) if where is None else _why(site, index, names[where], best[where]))
            for site, index, where in zip(problem.sites, table.chosen(best_D[None])[0].tolist(), at, strict=True)
        ]

    def groups(self, sites: Sequence[Candidates]) -> list[str]:
        """For every site the name of its ratio, such as "up_proj at depth 2 of 4"; "" for sites that stay dense."""
        free = [site.name for site in sites if len(site.options) > 1]
        depth = {name: self.depths * number // len(free) + 1 for number, name in enumerate(free)}
        return [
            f"{kind} at depth {depth[site.name]} of {self.depths}"
            if site.name in depth and (kind := _kind(site.name))
            else ""
            for site in sites
        ]


def _why(site: Candidates, index: int, group: str, ratio: float) -> str:
    return f"bolaco: ratio {ratio:.2f} of {group}, {described(site, index)}"


def _kind(name: str) -> str:
    """What a layer is for the search; "" for values."""
    last = place(name)
    if last in VALUE:
        return ""
    return "query and key" if last in QUERY_KEY else "output" if last in OUTPUT else last


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """The options of a site by the ratio from which on each is taken: the least error within the ratio.

    Attributes:
        ratios_O: ascending.
        options_O: the option from each ratio on.
    """

    ratios_O: Tensor
    options_O: Tensor

    @classmethod
    def of(cls, site: Candidates) -> _Steps:
        scales = [1.0 if o.format == DENSE else o.params / site.dense.params for o in site.options]
        order = sorted(range(len(scales)), key=lambda at: (scales[at], -site.options[at].error))
        best, options = order[0], []
        for at in order:
            best = min(best, at, key=lambda each: (site.options[each].error, scales[each]))
            options.append(best)
        ratios_O = torch.tensor([scales[at] for at in order], dtype=torch.float64)
        return cls(ratios_O=ratios_O, options_O=torch.tensor(options))

    def option(self, ratios_M: Tensor) -> Tensor:
        """The options for some ratios, M; the smallest where nothing is within the ratio."""
        places = torch.searchsorted(self.ratios_O, ratios_M.contiguous(), right=True) - 1
        return self.options_O[places.clamp_min(0)]


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Which option every site has for the ratios of its type, and whether that meets the budgets.

    Attributes:
        at: for every site which ratio is its own; None where it stays dense.
    """

    problem: Problem
    at: Sequence[int | None]
    steps: Sequence[_Steps]

    @classmethod
    def of(cls, problem: Problem, at: Sequence[int | None]) -> _Table:
        return cls(problem=problem, at=at, steps=[_Steps.of(site) for site in problem.sites])

    def chosen(self, points_MD: Tensor) -> Tensor:
        """The option of every site, M x sites."""
        whole_M = torch.ones(len(points_MD), dtype=torch.float64)
        columns = [
            steps.option(whole_M if where is None else points_MD[:, where])
            for steps, where in zip(self.steps, self.at, strict=True)
        ]
        return torch.stack(columns, 1)

    def feasible(self, points_MD: Tensor) -> Tensor:
        """Which points meet all budgets, and use one of them up to the slack."""
        chosen_MS, sites = self.chosen(points_MD), self.problem.sites
        fits_M = torch.ones(len(points_MD), dtype=torch.bool)
        full_M = torch.full_like(fits_M, not self.problem.limits)
        for unit, limit in self.problem.limits.items():
            costs = [torch.tensor(site.costs[unit], dtype=torch.float64) for site in sites]
            cost_M = torch.stack([own[chosen_MS[:, at]] for at, own in enumerate(costs)]).sum(0)
            fits_M &= cost_M <= limit
            full_M |= cost_M >= limit - SLACK * sum(float(own.max()) for own in costs)
        return fits_M & full_M

    def scaled(self, ratios: Sequence[float]) -> list[float]:
        """The ratios times the largest factor that is feasible; a ValueError if none is."""
        factors_M = torch.linspace(0.0, HIGH / min(ratios), 1001, dtype=torch.float64)
        points_MD = (factors_M[:, None] * torch.tensor(ratios, dtype=torch.float64)).clamp(LOW, HIGH)
        places = self.feasible(points_MD).nonzero()
        if not len(places):
            raise ValueError(
                f"rule 'bolaco': with values of attention dense and ratios of at least {LOW} no plan meets the "
                "budgets; raise them, or take rule 'knapsack'"
            )
        found: list[float] = points_MD[int(places[-1])].tolist()
        return found
