"""Copies of whole networks, also of those that keep activations or share memory."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .guards import in_words
from .state import storage_of

Model = TypeVar("Model", bound=nn.Module)

# Nested containers are searched this deep.
DEPTH = 3
_REGISTRIES = ("_parameters", "_buffers", "_modules")


def copied(model: Model, memo: dict[int, Any] | None = None) -> Model:
    """A copy of a network that shares nothing with it.

    Activations that a module keeps, as attributes or in lists and dictionaries, lose their autograd graph, which cannot
    be copied. Parameters and buffers that share memory share it in the copy, too.

    Args:
        memo: as for `copy.deepcopy`: id of an object -> what replaces it in the copy.

    Raises:
        ValueError: naming the attribute that cannot be copied, its module and the fix.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> model.kept = model(torch.ones(1, 2))
        >>> copied(model).kept.requires_grad
        False
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in _REGISTRIES:
                for tensor in tensors_held(value):
                    if not tensor.is_leaf and id(tensor) not in memo:
                        memo[id(tensor)] = tensor.detach().clone()
    try:
        with torch.inference_mode(False):  # a copy made in inference mode could not be trained
            _share_memory(model, memo)
            return copy.deepcopy(model, memo)
    except Exception as error:
        raise ValueError(_told(model, error)) from error


def _share_memory(model: nn.Module, memo: dict[int, Any]) -> None:
    """Let parameters and buffers of one storage share one in the copy, too: `deepcopy` would give each its own."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    together: dict[int, list[Tensor]] = defaultdict(list)
    for place, tensor in tensors.items():
        if place not in memo and type(tensor) in (Tensor, nn.Parameter) and (storage := storage_of(tensor)):
            together[storage].append(tensor)
    for sharing in together.values():
        if len(sharing) < 2:
            continue
        storage = sharing[0].untyped_storage().clone()
        for tensor in sharing:
            with torch.no_grad():
                empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                view = empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(view, tensor.requires_grad) if is_parameter else view


def tensors_held(value: Any, depth: int = DEPTH) -> Iterator[Tensor]:
    """The tensors in a value: itself, or those in nested lists, tuples, sets and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, set, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_held(item, depth - 1)


def _told(model: nn.Module, error: Exception) -> str:
    """Which attribute cannot be copied, and what to do."""
    first = (str(error) or type(error).__name__).partition("\n")[0]
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in _REGISTRIES:
                continue
            try:
                copy.deepcopy(value, {id(part): part for part in model.modules()})
            except Exception:
                return (
                    f"attribute {name!r} of {in_words(module, path)} cannot be copied ({first}); delete it, or set it "
                    f"to None, before the network is worked on"
                )
    return f"{type(model).__name__} cannot be copied ({first}); give it a __deepcopy__ that works"
