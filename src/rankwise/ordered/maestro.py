"""Maestro: train all nested networks at once, shrink them by the group lasso, and read off the ranks.

Source: Horvath, Laskaridis, Rajput, Wang, "Maestro: Uncovering Low-Rank Structures via Trainable Decomposition", 2023,
arXiv 2308.14929. The proximal step in the place of the lasso's gradient is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..network.sites import Sites
from ..plan import Plan
from ..training.technique import Step, Technique
from .extraction import settle_
from .hierarchical_lasso import lasso, lasso_step_
from .layer import counts, order_, ordered_layers
from .norms import recalibrate_
from .sampler import Sampler
from .shrinking import shrink_


class Maestro(Technique):
    """Ordered ranks as a technique of `Loop`; in a loop of one's own the same three calls stand around a step.

        min  E loss(f(x; layer i uses b components)) + strength sum_i sum_b (||U_i[:, b:]||_F + ||V_i[b:]||_F)

    over the pairs (i, b) of a `Sampler`. Every step is followed by the exact proximal step of the lasso, and every
    `every` steps components below the threshold leave. The held-out samples judge the network of all active components,
    with the lasso added to their loss. In our measurement (docs/training.md) it lost to compressing a dense network in
    every seed.

    Args:
        sites: of the network that is trained.
        strength: of the lasso. With 0 ranks are ordered but not reduced; take `deploy` then.
        threshold: of `shrink_`, relative to nothing: the product of two norms.
        every: steps between two shrinkings.
        only: patterns of the layers; leave out a small classifier.
        sampler: "pairs" or "layers".
        seed: of the sampler.
        batches: inputs that batch norms are estimated from before every look at the held-out samples; without them
            they keep the statistics of training, which mix all nested networks.

    Raises:
        ValueError: during training, if the lasso leaves nothing of any layer; the network is in its best state then.

    Example:
        >>> import rankwise as rw
        >>> from rankwise.training import Loop, LoopOptions, Samples
        >>> model, x = nn.Sequential(nn.Linear(16, 16)), torch.randn(64, 16)
        >>> told = Maestro(rw.find(model, x[:1]), strength=1e-3)
        >>> loss = lambda inputs, _: (model(inputs) - inputs).square().mean()
        >>> loop = Loop(model, loss, Samples.of(x), LoopOptions(epochs=2, batch=16), techniques=[told])
        >>> _ = loop.run()
        >>> loop.plan.rule, type(model[0]).__name__
        ('trained', 'Linear')
    """

    def __init__(
        self,
        sites: Sites,
        strength: float = 1e-3,
        *,
        threshold: float = 1e-7,
        every: int = 100,
        only: str | Iterable[str] = "*",
        sampler: str = "pairs",
        seed: int = 0,
        batches: Iterable[Any] | None = None,
    ) -> None:
        if not 0 <= strength < float("inf") or every < 1:
            raise ValueError(f"strength is {strength}, at least 0, and every {every}, at least 1 step")
        self.sites, self.strength, self.threshold, self.every = sites, strength, threshold, every
        self.only, self.sampler = only, Sampler(sampler, seed)
        self.batches = None if batches is None else list(batches)

    def begin(self, model: nn.Module) -> None:
        self._model = order_(model, self.sites, self.only)

    def before_step(self, step: Step) -> None:
        self.sample()

    def sample(self) -> tuple[str, int]:
        """Let the next layer use its next number of components."""
        name, count = self.sampler(counts(self._model))
        ordered_layers(self._model)[name].used = count
        return name, count

    def after_step(self, step: Step) -> None:
        for layer in ordered_layers(self._model).values():
            layer.used = None
        if self.strength:
            lasso_step_(self._model, step.rate * self.strength)
            if (step.number + 1) % self.every == 0:
                self.shrink()

    def shrink(self) -> dict[str, int]:
        """Drop the components below the threshold; a ValueError if none would be left."""
        try:
            return shrink_(self._model, self.threshold)
        except ValueError as error:
            raise ValueError(f"{error} than {self.strength:g}, such as {self.strength / 2:g}") from error

    @contextmanager
    def judging(self, model: nn.Module) -> Iterator[None]:
        if self.batches is not None:
            recalibrate_(model, self.batches)
        yield

    @torch.no_grad()
    def price(self) -> float:
        return self.strength * float(lasso(self._model)) if self.strength else 0.0

    def finish(self, model: nn.Module) -> Plan:
        if self.strength:
            self.shrink()
        return settle_(model, self.sites, f"components that a group lasso of {self.strength:g} left")

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sampler.load_state_dict(state)
