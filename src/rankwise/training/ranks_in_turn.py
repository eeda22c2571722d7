"""`RankSearch` as a technique of `Loop`: ranks and weights in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..plan import Plan
from ..running.calling import call
from .rank_search import RankSearch
from .technique import Step, Technique

AIMS = ("product", "budget")


class RanksInTurn(Technique):
    """Step the alphas before every step of the weights, and draw the weights towards the mixtures of their fits.

    The weights follow the loss of the loop plus `weight * penalty()`. With `L` the loss of `f(x; W^)` on the batch of
    the step, or the distance of the weights from the mixtures where there is no loss, the alphas follow

        L share()                                      aim "product"
        L / L_0 + [mu + excess()]_+^2 / 2              aim "budget": an augmented Lagrangian, mu += [excess()] each step

    with `L_0` the first value of L. The plan is made from the alphas at the end.

    Args:
        search: over the network that is trained.
        loss: function of outputs and of the step, which has inputs and labels; None for the distance alone, no data.
        rate: learning rate of the alphas.
        weight: weight of the penalty.
        every: steps between two fits of all candidates.
        keep: budgets of the plan.
        warm_up: steps of the weights alone before the first of the alphas.
        aim: "product", the published one, or "budget", which needs one budget in the unit of the search, as a share.

    Raises:
        ValueError: for a setting outside its range.

    Example:
        >>> import rankwise as rw
        >>> from rankwise.training import Loop, LoopOptions, Samples
        >>> model, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)), torch.randn(64, 16)
        >>> search = RankSearch(model, rw.find(model, x[:1]), formats=["svd"])
        >>> turn = RanksInTurn(search, lambda outputs, _: outputs.square().mean(), keep={"params": 0.5})
        >>> loss = lambda inputs, _: model(inputs).square().mean()
        >>> loop = Loop(model, loss, Samples.of(x), LoopOptions(epochs=2, batch=16), techniques=[turn])
        >>> _ = loop.run()
        >>> loop.plan.planned["params"] <= 0.5 * loop.plan.dense["params"]
        True
    """

    def __init__(
        self,
        search: RankSearch,
        loss: Callable[[Any, Step], Tensor] | None,
        *,
        rate: float = 0.1,
        weight: float = 1.0,
        every: int = 20,
        keep: Mapping[str, float] | None = None,
        warm_up: int = 0,
        aim: str = "product",
    ) -> None:
        if every < 1 or warm_up < 0:
            raise ValueError(f"every is {every}, warm_up {warm_up}; they must be at least 1 and 0 steps")
        if aim not in AIMS:
            raise ValueError(f"aim is {aim!r}; it is {' or '.join(AIMS)}")
        limit = (keep or {}).get(search.unit.name)
        if aim == "budget" and not (isinstance(limit, float) and 0 < limit < 1):
            raise ValueError(
                f"aim 'budget' needs a share of {search.unit.name} to keep, such as {{'{search.unit.name}': 0.5}}"
            )
        self.search, self.loss, self.weight, self.every, self.keep = search, loss, weight, every, keep
        self.warm_up, self.limit = warm_up, limit if aim == "budget" else None
        self.multiplier, self.first = 0.0, 0.0
        self.optimiser = torch.optim.Adam(search.parameters(), lr=rate)
        self._called = _Called(search.model)

    def before_step(self, step: Step) -> None:
        if step.number and step.number % self.every == 0:
            self.search.refit()
        if step.number < self.warm_up:
            return
        alphas = self.search.parameters()
        # Not backward(): the weights must get their gradient from the step alone.
        gradients = torch.autograd.grad(self._objective(step), alphas)
        for alpha, gradient in zip(alphas, gradients, strict=True):
            alpha.grad = gradient
        self.optimiser.step()

    def _objective(self, step: Step) -> Tensor:
        """What the alphas minimise in this step."""
        if self.loss is None:
            value = self.search.distance("alphas")
        else:
            mixed = {f"model.{name}": weight for name, weight in self.search.mixed().items()}
            value = self.loss(torch.func.functional_call(self._called, mixed, (step.inputs,)), step)
        if self.limit is None:
            return value * self.search.share()
        self.first = self.first or float(value.detach().clamp_min(torch.finfo(value.dtype).tiny))
        excess = self.search.excess(self.limit)
        price = (self.multiplier + excess).clamp_min(0)
        self.multiplier = max(self.multiplier + float(excess.detach()), 0.0)
        return value / self.first + price.square() / 2

    def penalty(self) -> Tensor | None:
        return self.weight * self.search.penalty() if self.weight else None

    def finish(self, model: nn.Module) -> Plan:
        self.search.refit()
        return self.search.plan(self.keep)

    def state_dict(self) -> dict[str, Any]:
        alphas = {name: alpha.detach() for name, alpha in self.search.alphas.items()}
        own = {"multiplier": self.multiplier, "first": self.first}
        return {"alphas": alphas, "optimiser": self.optimiser.state_dict(), "fits": dict(self.search.fits), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, alpha in self.search.alphas.items():
                alpha.copy_(state["alphas"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.multiplier, self.first = state["multiplier"], state["first"]
        self.search.fits = {name: fits.to(self.search.fits[name]) for name, fits in state["fits"].items()}


class _Called(nn.Module):
    """A network as a function of one batch of any kind."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return call(self.model, inputs)
