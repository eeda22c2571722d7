"""The arguments that a model's forward receives for a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .calling import call, map_tensors
from .exclusive import own_thread

# Positional and keyword arguments of a forward.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments(model: nn.Module, batch: Any) -> Arguments:
    """Positional and keyword arguments as `call` passes them: on the model's device, in its dtype.

    Runs the model once; a ValueError if it rejects the batch.

    Example:
        >>> import torch
        >>> args, kwargs = arguments(nn.Linear(3, 2), torch.zeros(4, 3))
        >>> args[0].shape, kwargs
        (torch.Size([4, 3]), {})
    """
    seen: list[Arguments] = []

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(fresh((args, kwargs)))

    with model.register_forward_pre_hook(own_thread(remember), prepend=True, with_kwargs=True):
        call(model, batch)
    return seen[0]


def fresh(given: Arguments) -> Arguments:
    """A copy for one call: the network may write into its inputs.

    Example:
        >>> import torch
        >>> (x,), _ = fresh(((torch.zeros(1),), {}))
        >>> x
        tensor([0.])
    """
    args, kwargs = given
    return map_tensors(Tensor.clone, args), map_tensors(Tensor.clone, kwargs)
