"""What a training does beside minimising its loss; `Loop` calls every technique in turn and knows none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..plan import Plan


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that is about to be made, or was just made.

    Attributes:
        number: number of the step, from 0.
        share: share of the training that was done before it, from 0 to 1.
        inputs, labels: the batch, as the network takes it; labels may be None.
        optimiser: makes the step, with the learning rate of now.
    """

    number: int
    share: float
    inputs: Any
    labels: Tensor | None
    optimiser: Optimizer

    @property
    def rate(self) -> float:
        """The learning rate of the step."""
        return float(self.optimiser.param_groups[0]["lr"])


class Technique:
    """One technique; what a subclass does not override does nothing.

    Example:
        >>> class Decay(Technique):
        ...     def begin(self, model):
        ...         self.weights = [p for p in model.parameters() if p.dim() > 1]
        ...
        ...     def penalty(self):
        ...         return 1e-4 * sum(weight.square().sum() for weight in self.weights)
    """

    def begin(self, model: nn.Module) -> None:
        """Prepare the network, before there is an optimiser; parametrisations change its parameters here."""

    def before_step(self, step: Step) -> None:
        """Prepare a step; random numbers drawn here follow from seed and step."""

    def penalty(self) -> Tensor | None:
        """A term to add to the loss of a step, with gradients; None for nothing."""
        return None

    def after_step(self, step: Step) -> None:
        """Change the weights once more after the optimiser, such as by a proximal step."""

    def judging(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, the network is as it would be delivered now; the held-out samples judge that network."""
        return nullcontext()

    def price(self) -> float:
        """What is added to the held-out loss when states are compared, such as a penalty that is part of the aim."""
        return 0.0

    def ends(self) -> bool:
        """Whether the training may end before its limit; asked after every look at the held-out samples."""
        return False

    def finish(self, model: nn.Module) -> Plan | None:
        """Undo what `begin` did to the network, which is in its best state; return a plan if ranks were chosen.

        It is not called if the training ends with an error.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for the technique to resume as if it had never been stopped."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from a checkpoint."""


class Penalty(Technique):
    """A loss that needs no data, such as a function of the weights, as a technique."""

    def __init__(self, function: Callable[[], Tensor]) -> None:
        self.function = function

    def penalty(self) -> Tensor:
        return self.function()
