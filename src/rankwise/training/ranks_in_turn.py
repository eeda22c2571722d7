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


class RanksInTurn(Technique):
    """Step the alphas before every step of the weights, and draw the weights towards the mixtures of their fits.

    The alphas follow `loss(f(x; W^), y) share()` on the batch of the step, the weights the loss of the loop plus
    `weight * penalty()`. The plan is made from the weights of the best state.

    Args:
        search: over the network that is trained.
        loss: function of outputs and labels, which may be None.
        rate: learning rate of the alphas.
        weight: weight of the penalty.
        every: steps between two fits of all candidates.
        keep: budgets of the plan.

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
        loss: Callable[[Any, Tensor | None], Tensor],
        *,
        rate: float = 0.1,
        weight: float = 1.0,
        every: int = 20,
        keep: Mapping[str, float] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1 step")
        self.search, self.loss, self.weight, self.every, self.keep = search, loss, weight, every, keep
        self.optimiser = torch.optim.Adam(search.parameters(), lr=rate)
        self._called = _Called(search.model)

    def before_step(self, step: Step) -> None:
        if step.number and step.number % self.every == 0:
            self.search.refit()
        mixed = {f"model.{name}": weight for name, weight in self.search.mixed().items()}
        outputs = torch.func.functional_call(self._called, mixed, (step.inputs,))
        alphas = self.search.parameters()
        # Not backward(): the weights must get their gradient from the step alone.
        gradients = torch.autograd.grad(self.loss(outputs, step.labels) * self.search.share(), alphas)
        for alpha, gradient in zip(alphas, gradients, strict=True):
            alpha.grad = gradient
        self.optimiser.step()

    def penalty(self) -> Tensor:
        return self.weight * self.search.penalty()

    def finish(self, model: nn.Module) -> Plan:
        self.search.refit()
        return self.search.plan(self.keep)

    def state_dict(self) -> dict[str, Any]:
        alphas = {name: alpha.detach() for name, alpha in self.search.alphas.items()}
        return {"alphas": alphas, "optimiser": self.optimiser.state_dict(), "fits": dict(self.search.fits)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, alpha in self.search.alphas.items():
                alpha.copy_(state["alphas"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.search.fits = {name: fits.to(self.search.fits[name]) for name, fits in state["fits"].items()}


class _Called(nn.Module):
    """A network as a function of one batch of any kind."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return call(self.model, inputs)
