"""Batch norms of nested networks: statistics estimated again, or one set for each network.

A prefix of a layer has outputs of another mean and variance than the whole, so that the statistics of training, which
mixes all of them, fit none.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..running.calling import call
from ..running.exclusive import exclusive
from ..running.guards import unwrap
from ..running.pristine import evaluating

Norm = nn.modules.batchnorm._BatchNorm


def _norms(model: nn.Module) -> dict[str, Any]:
    parts = model.named_modules()
    return {name: part for name, part in parts if isinstance(part, Norm) and part.running_mean is not None}


@torch.no_grad()
@exclusive
def recalibrate_(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Estimate the statistics of all batch norms anew: the means over the batches, each normalised by itself.

    The result does not depend on the order of the batches, up to rounding, and draws no random numbers of its own.

    Args:
        model: changed in place and returned; its layers use what they use now.
        batches: inputs, of equal size.

    Raises:
        ValueError: if there are no batches.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> recalibrate_(model, [torch.tensor([[1.0], [3.0]])])[0].running_mean
        tensor([2.])
    """
    model, given = unwrap(model), list(batches)
    if not given:
        raise ValueError("there are no batches to estimate the statistics of batch norms from")
    norms = _norms(model)
    with ExitStack() as after, evaluating(model):
        for norm in norms.values():
            after.callback(setattr, norm, "momentum", norm.momentum)
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        if norms:
            for batch in given:
                call(model, batch)
    return model


class SwitchedNorms:
    """A set of batch norm statistics for each nested network.

    Args:
        model: the network.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> norms = SwitchedNorms(model)
        >>> norms.store("full")
        >>> _ = recalibrate_(model, [torch.ones(2, 1)])
        >>> norms.switch("full")
        >>> model[0].running_mean
        tensor([0.])
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrap(model)
        self.sets: dict[str, dict[str, Tensor]] = {}

    def store(self, name: str) -> None:
        """Keep the statistics of now under a name."""
        self.sets[name] = {
            f"{path}.{key}": buffer.clone()
            for path, norm in _norms(self.model).items()
            for key, buffer in norm.named_buffers()
        }

    def switch(self, name: str) -> None:
        """Put the statistics of a name into the network; a ValueError for a name that was not stored."""
        if name not in self.sets:
            raise ValueError(f"there are no statistics {name!r}; stored are {', '.join(self.sets) or 'none'}")
        own = dict(self.model.named_buffers())
        for path, buffer in self.sets[name].items():
            own[path].copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        """For a file."""
        return {name: dict(values) for name, values in self.sets.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a file."""
        self.sets = {name: dict(values) for name, values in state.items()}
