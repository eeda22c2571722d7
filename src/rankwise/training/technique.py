"""What a training does beside following its loss; `Loop` asks every technique in turn and knows none of them."""

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
        number: of the step, from 0.
        share: of the training that is done, from 0 to 1.
        inputs, labels: the batch, as the network takes it; labels are None where samples have none.
    """

    number: int
    share: float
    inputs: Any
    labels: Tensor | None


class Technique:
    """One technique; a subclass says what it does, and everything that it leaves out is nothing.

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
        """Whatever a step needs; the random numbers drawn here follow from seed and step."""

    def penalty(self) -> Tensor | None:
        """What is added to the loss of a step, with gradients; None for nothing."""
        return None

    def finish(self, model: nn.Module) -> Plan | None:
        """Undo what `begin` did to the network, which is in its best state; a technique that chooses ranks says which.

        It is not called where a training ends by an error.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold for the technique to go on as if it had never been stopped."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""


class Penalty(Technique):
    """A loss that needs no data, such as of weights.

    Args:
        function: of no arguments.
    """

    def __init__(self, function: Callable[[], Tensor]) -> None:
        self.function = function

    def penalty(self) -> Tensor:
        """See `Technique.penalty`."""
        return self.function()
