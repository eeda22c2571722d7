"""Bayesian optimisation over a knapsack: try plans to find how much the losses of each kind of layer matter."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from ..plan import DENSE
from .base import Candidates, Pick, Problem, Rule
from .budgeted import least, losses
from .studies import minimise, open_study


@dataclass(frozen=True, kw_only=True)
class Bayesian(Rule):
    """`min loss(plan(m))`, `plan(m) = argmax prod_i (1 - error_i(o_i))^m_g(i)` in all budgets: a search for m.

    Layers of one type (kind, and last part of the name, such as `q_proj` or `conv1`) at a similar depth are a group,
    whose losses count `m_g` times in the knapsack. A Gaussian process with expected improvement proposes the next
    multipliers, on a logarithmic scale. The first trial is the knapsack itself and the best tried plan is returned, so
    the result is never worse than the knapsack's.

    The published search varies the share that each group keeps and rejects plans over the budget. Here the knapsack
    meets all budgets whatever the multipliers are: no trial is wasted, and ranks still differ within a group.

    Args:
        trials: plans to try, at least 1.
        depths: groups of depth, at least 1.
        most: multipliers lie between 1 / most and most; above 1.
        startup: random trials before the process proposes, the knapsack's included; at least 1.
        seed: random seed of the proposals.
        study: a file that keeps the trials; an existing search is resumed, and `trials` counts those in it. Only one
            search at a time may use it.

    Raises:
        ValueError: for a setting outside its range, or a study of another network, budget or other candidates.
        ImportError: without the packages of the extra `search`.

    Source: Ji, Xiang, Li, Chen, Liu, Zhang, "Adaptive Feature-based Low-Rank Compression of Large Language Models via
    Bayesian Optimization", 2024, arXiv 2405.10616 (Bolaco).
    """

    name: ClassVar[str] = "bayesian"
    summary: ClassVar[str] = "knapsack with a multiplier for each kind of layer, by Bayesian optimisation; tries plans"
    needs_evaluate: ClassVar[bool] = True

    trials: int = 30
    depths: int = 4
    most: float = 2.0
    startup: int = 6
    seed: int = 0
    study: str = ""

    def __post_init__(self) -> None:
        for name in ("trials", "depths", "startup"):
            if getattr(self, name) < 1:
                raise ValueError(f"rule 'bayesian': {name} is {getattr(self, name)}; at least 1 is needed")
        if not 1 < self.most < math.inf:
            raise ValueError(f"rule 'bayesian': most is {self.most}; it must be above 1 and finite")
        for package in ("optuna", "scipy"):
            if find_spec(package) is None:
                raise ImportError(f"rule 'bayesian' needs {package}: pip install 'rankwise[search]'")

    def choose(self, problem: Problem) -> list[Pick]:
        groups = self.groups(problem.sites)
        plain = dict.fromkeys(sorted({name for name in groups if name}), 1.0)

        def picks(multipliers: Mapping[str, float]) -> list[Pick]:
            """The knapsack for some multipliers."""
            factors = [multipliers[name] if name else 1.0 for name in groups]
            pairs = zip(problem.sites, factors, strict=True)
            return least(problem, [factor * losses(site) for site, factor in pairs])

        def tried(multipliers: Mapping[str, float]) -> float:
            assert problem.evaluate is not None
            pairs = zip(problem.sites, picks(multipliers), strict=True)
            return problem.evaluate(problem.plan({site.name: site.options[pick.option] for site, pick in pairs}))

        picked = picks(plain)  # report a budget that cannot be met before a study is made
        if len(plain) < 2:  # a single multiplier changes nothing
            return picked
        with open_study(self.study, self._identity(problem)) as study:
            best = minimise(
                study, tried, plain, most=self.most, trials=self.trials, startup=self.startup, seed=self.seed
            )
        return [
            pick if not name or site.options[pick.option].format == DENSE else Pick(pick.option, _why(pick, name, best))
            for site, pick, name in zip(problem.sites, picks(best), groups, strict=True)
        ]

    def groups(self, sites: Sequence[Candidates]) -> list[str]:
        """For every site the name of its group, such as "conv2d conv1 at depth 2 of 4"; "" without a choice."""
        free = [site.name for site in sites if len(site.options) > 1]
        depths = {name: self.depths * place // len(free) + 1 for place, name in enumerate(free)}
        return [
            f"{' '.join(filter(None, (site.kind, place(site.name))))} at depth {depths[site.name]} of {self.depths}"
            if site.name in depths
            else ""
            for site in sites
        ]

    def _identity(self, problem: Problem) -> dict[str, Any]:
        """What must be the same for a study to be resumed."""
        forms = [[(o.format, o.ranks, o.params, o.macs) for o in site.options] for site in problem.sites]
        return {
            "network": problem.plan({}).fingerprint,
            "budget": {unit: f"{limit:.0f}" for unit, limit in problem.limits.items()},
            "sites": [site.name for site in problem.sites],
            "candidates": hashlib.sha256(json.dumps(forms).encode()).hexdigest(),
            "errors": [sum(option.error for option in site.options) for site in problem.sites],
            "settings": {name: str(getattr(self, name)) for name in ("depths", "most", "startup", "seed")},
        }


def place(name: str) -> str:
    """What a layer is within its block: the last part of its name that is not a number.

    Example:
        >>> [place(name) for name in ("encoder.3.q_proj", "layer2.0.downsample.0", "4")]
        ['q_proj', 'downsample', '']
    """
    return next((part for part in reversed(name.split(".")) if not part.isdigit()), "")


def _why(pick: Pick, group: str, multipliers: Mapping[str, float]) -> str:
    return f"bayesian: losses of {group} count {multipliers[group]:.2g} times, {pick.why}"
