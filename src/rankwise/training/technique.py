"""What a training does beside minimising its loss; `Loop` calls every technique in turn and knows none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..plan import Plan


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that is about to be made.

    Attributes:
        number: number of the step, from 0.
        share: share of the training that is done, from 0 to 1.
        inputs, labels: the batch, as the network takes it; labels may be None.
    """

    number: int
    share: float
    inputs: Any
    labels: Tensor | None


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
