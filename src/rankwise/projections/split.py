"""Free weights and low-rank ones that are drawn together: learning-compression and ADMM.

Sources: Idelbayev and Carreira-Perpinan, "Low-Rank Compression of Neural Nets: Learning the Rank of Each Layer", CVPR
2020; Carreira-Perpinan, "Model compression as constrained optimization", 2017, arXiv 1707.01209; Boyd, Parikh, Chu,
Peleato, Eckstein, "Distributed Optimization and Statistical Learning via the Alternating Direction Method of
Multipliers", 2011; Yin, Sui, Liao, Yuan, "Towards Efficient Tensor Decomposition-Based DNN Model Compression with
Optimization Framework", 2021, arXiv 2107.12422 (ADMM towards tensor trains).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..formats import SomeFormats, get_format
from ..formats.weights import read, site_weight, weight_metrics, write
from ..network.replacing import module_at
from ..network.sites import Sites
from ..plan import DENSE, Plan
from ..planning.planner import Planner
from ..planning.request import Request
from ..ranks import Pick, Problem, Rule
from ..ranks.budgeted import least
from ..running.copying import copied
from ..running.guards import unwrap
from ..training.technique import Step, Technique
from ..training.trained_sites import trained_sites


class Split(Technique):
    """Two steps in turn: gradients move the weights W, a projection Pi makes the low-rank weights T.

        W:  min loss(W) + mu / 2 sum_i ||W_i - T_i - L_i / mu||_F^2        by the loop
        T = Pi(W - L / mu),   L <- L - mu (W - T)                          every few steps

    mu rises geometrically from `first` to `last` over the training. The held-out samples judge the network with
    `Pi(W)` as its weights, the start included, so that the result is never worse than compressing the start.

    Args:
        sites: of the network that is trained.
        first, last: mu at the start and at the end.
        every: steps between two projections.
        multipliers: whether there are multipliers L; without them this is a quadratic penalty.
        only: patterns of the sites.
    """

    def __init__(
        self,
        sites: Sites,
        *,
        first: float,
        last: float,
        every: int,
        multipliers: bool,
        only: str | Iterable[str] = "*",
    ) -> None:
        if not 0 < first <= last < float("inf") or every < 1:
            raise ValueError(f"mu rises from {first} to {last}, above 0, and every is {every}, at least 1 step")
        self.sites, self.first, self.last = sites, first, last
        self.every, self.multipliers, self.only = every, multipliers, only
        self.mu = first
        self.targets: dict[str, Tensor] = {}
        self.lagrange: dict[str, Tensor] = {}

    @abstractmethod
    def plan(self, model: nn.Module) -> Plan:
        """Formats and ranks for the weights that the network has now."""

    def begin(self, model: nn.Module) -> None:
        self._model = unwrap(model)
        self._chosen = {site.name: site for site in trained_sites(self._model, self.sites, self.only, "project")}
        self._shifted = copied(self._model)
        self.lagrange = {name: torch.zeros_like(self._weight(name)) for name in self._chosen}
        self.targets = self._projected(self._model)[1]

    def before_step(self, step: Step) -> None:
        self.mu = self.first * (self.last / self.first) ** step.share
        if step.number and step.number % self.every == 0:
            self.project()

    @torch.no_grad()
    def project(self) -> Plan:
        """New targets for the weights of now, and new multipliers."""
        for name in self._chosen:
            write(module_at(self._shifted, name), self._weight(name) - self.lagrange[name] / self.mu)
        plan, self.targets = self._projected(self._shifted)
        if self.multipliers:
            for name, target in self.targets.items():
                self.lagrange[name] -= self.mu * (self._weight(name) - target)
        return plan

    def penalty(self) -> Tensor:
        pulls = [
            (self._weight(name) - self.targets[name] - self.lagrange[name] / self.mu).square().sum()
            for name in self._chosen
        ]
        return self.mu / 2 * torch.stack(pulls).sum()

    @contextmanager
    def judging(self, model: nn.Module) -> Iterator[None]:
        kept = {name: self._weight(name).detach().clone() for name in self._chosen}
        self._put(self._projected(self._model)[1])
        try:
            yield
        finally:
            self._put(kept)

    def finish(self, model: nn.Module) -> Plan:
        plan, targets = self._projected(self._model)
        self._put(targets)
        return plan

    def state_dict(self) -> dict[str, Any]:
        return {"targets": dict(self.targets), "lagrange": dict(self.lagrange)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for own, stored in ((self.targets, state["targets"]), (self.lagrange, state["lagrange"])):
            own.update({name: value.to(self._weight(name)) for name, value in stored.items()})

    def _weight(self, name: str) -> Tensor:
        return read(module_at(self._model, name))

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            write(module_at(self._model, name), weight)

    @torch.no_grad()
    def _projected(self, model: nn.Module) -> tuple[Plan, dict[str, Tensor]]:
        """The plan for a network's weights, and the weights that it fits to them."""
        plan = self.plan(model)
        fitted: dict[str, Tensor] = {}
        for name, site in self._chosen.items():
            weight = site_weight(model, site)
            row = plan[name]
            if row.format != DENSE:
                metrics = weight_metrics(site, weight.device)
                weight = get_format(row.format).fit(site, weight, metrics, row.ranks).dense()
            fitted[name] = weight.to(self._weight(name)).reshape(self._weight(name).shape)
        return plan, fitted


class LearningCompression(Split):
    """Weights and ranks learned together: the projection chooses the ranks anew within a budget.

        T = argmin sum_i ||W_i - L_i / mu - T_i||_F^2   subject to   sum_i cost_i(ranks_i) <= budget

    The squared errors of all ranks come from one decomposition of each weight, and the best ranks from the exact solver
    of the rank rules.

    Args:
        sites: of the network that is trained.
        keep: budgets in "params" or "macs".
        formats: that the projection chooses from.
        first, last, every, multipliers, only: as for `Split`.

    Example:
        >>> import rankwise as rw
        >>> from rankwise.training import Loop, LoopOptions, Samples
        >>> model, x = nn.Sequential(nn.Linear(16, 16)), torch.randn(64, 16)
        >>> told = LearningCompression(rw.find(model, x[:1]), {"params": 0.5})
        >>> loss = lambda inputs, _: (model(inputs) - inputs).square().mean()
        >>> loop = Loop(model, loss, Samples.of(x), LoopOptions(epochs=2, batch=16), techniques=[told])
        >>> _ = loop.run()
        >>> loop.plan.planned["params"] <= 0.5 * loop.plan.dense["params"]
        True
    """

    def __init__(
        self,
        sites: Sites,
        keep: Mapping[str, float],
        *,
        formats: SomeFormats = "svd",
        first: float = 1e-3,
        last: float = 1e-1,
        every: int = 20,
        multipliers: bool = True,
        only: str | Iterable[str] = "*",
    ) -> None:
        super().__init__(sites, first=first, last=last, every=every, multipliers=multipliers, only=only)
        self.keep, self.formats = dict(keep), formats

    def plan(self, model: nn.Module) -> Plan:
        energies = {name: float(site_weight(model, site).square().sum()) for name, site in self._chosen.items()}
        dense = [name for name in self.sites if name not in self._chosen]
        planner = Planner.of(
            model,
            self.sites,
            formats=self.formats,
            metric="weight",
            round_to=1,
            include=["*", *self._chosen],
            ignore=dense,
        )
        return planner.plan(Request(rule=_LeastSquares(energies=energies), keep=self.keep))


class Admm(Split):
    """The alternating direction method of multipliers towards any registered formats, at the ranks of a plan.

    Args:
        sites: of the network that is trained.
        plan: formats and ranks, such as from `rankwise.choose` with `metric="weight"`.
        rho: weight of the penalty, the same all the time.
        every, only: as for `Split`; layers that the plan leaves dense are free.
    """

    def __init__(
        self, sites: Sites, plan: Plan, *, rho: float = 1e-2, every: int = 20, only: str | Iterable[str] = "*"
    ) -> None:
        super().__init__(sites, first=rho, last=rho, every=every, multipliers=True, only=only)
        self._plan = plan

    def plan(self, model: nn.Module) -> Plan:
        return self._plan

    def begin(self, model: nn.Module) -> None:
        if not self._plan.factorised:
            raise ValueError("the plan leaves every layer dense, so that there is nothing to draw weights towards")
        super().begin(model)


@dataclass(frozen=True, kw_only=True)
class _LeastSquares(Rule):
    """The least sum of squared errors of the weights within the budgets."""

    name: ClassVar[str] = "learning_compression"
    summary: ClassVar[str] = "least squared error of the weights within the budgets"

    energies: Mapping[str, float]

    def choose(self, problem: Problem) -> list[Pick]:
        losses = [[self.energies.get(s.name, 0.0) * option.error for option in s.options] for s in problem.sites]
        picks: Sequence[Pick] = least(problem, losses)
        return list(picks)

    def __str__(self) -> str:
        return self.name
