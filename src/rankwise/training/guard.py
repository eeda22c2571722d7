"""The best state of a network so far, by its loss on samples that training does not see."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ..running.state import set_state


class Guard:
    """Keeps the state with the least held-out loss, from the start on, so training never ends with a worse network.

    Args:
        model: the network.
        loss: its held-out loss now; a ValueError if it is not finite.

    Example:
        >>> import torch
        >>> model = nn.Linear(1, 1)
        >>> guard = Guard(model, loss=1.0)
        >>> _ = nn.init.zeros_(model.weight)
        >>> guard(0.5), guard(0.7), guard.loss
        (True, False, 0.5)
        >>> guard.restore().weight.item()
        0.0
    """

    def __init__(self, model: nn.Module, loss: float) -> None:
        if not math.isfinite(loss):
            raise ValueError(f"the network's held-out loss is {loss} before any step; check its weights and the data")
        self.model = model
        self.start = self.loss = loss
        self.waited = 0
        self.best = _copied(model)

    def __call__(self, loss: float) -> bool:
        """Judge the network's present state by its held-out loss; returns whether it is the best so far."""
        if not loss < self.loss:
            self.waited += 1
            return False
        self.loss, self.waited, self.best = loss, 0, _copied(self.model)
        return True

    def restore(self) -> nn.Module:
        """Put the best state back into the network."""
        set_state(self.model, self.best)
        return self.model

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"start": self.start, "loss": self.loss, "waited": self.waited, "best": self.best}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """From a checkpoint."""
        self.__dict__.update(state)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = model.state_dict()
    return {name: tensor.detach().clone() for name, tensor in state.items()}
