"""Keep and restore the plain attributes of a network's modules: state that is neither parameter nor buffer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn

from .copying import DEPTH, tensors_held
from .state import writes

# Restored elsewhere, or changed on purpose when layers are replaced.
_OTHERS = ("_parameters", "_buffers", "_modules", "training", "_tied_weights_keys", "all_tied_weights_keys")
_STATE = (Tensor, fx.Proxy, int, float, complex, str, type(None), list, dict, set, tuple)


class Attributes:
    """A snapshot of what a network's modules hold beside parameters, buffers, modules and hooks.

    Numbers, tensors and containers of them are kept, but nothing that holds a module, which may be replaced meanwhile.
    A container changed in place gets its entries back, a tensor written in place its values.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> model.calls = 3
        >>> before = Attributes(model)
        >>> model.calls, model.seen = 4, [1]
        >>> before.restore()
        >>> model.calls, hasattr(model, "seen")
        (3, False)
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (module, set(vars(module)), {name: value for name, value in vars(module).items() if _is_state(name, value)})
            for module in model.modules()
        ]
        values = [value for _, _, own in self._kept for value in own.values()]
        self._containers = [(value, copy.copy(value)) for value in values if isinstance(value, (list, dict, set))]
        parameters = {id(parameter) for parameter in model.parameters()}
        held = {id(tensor): tensor for value in values for tensor in tensors_held(value)}
        self._tensors = [
            (tensor, writes(tensor), tensor.detach().clone())
            for place, tensor in held.items()
            if place not in parameters
        ]

    def changed(self) -> bool:
        """Whether anything differs from the snapshot."""
        return (
            any(not _same(container, entries) for container, entries in self._containers)
            or any(writes(tensor) != version for tensor, version, _ in self._tensors)
            or any(
                vars(module).keys() != names or any(vars(module)[name] is not value for name, value in own.items())
                for module, names, own in self._kept
            )
        )

    def restore(self, but: str | None = None) -> None:
        """Put everything back and remove new attributes, except those whose names begin with `but`."""
        with ExitStack() as steps:  # every step runs, even after another failed; the last one comes first
            for _ in range(2):  # and once more, for a step that was interrupted: steps that are done change nothing
                for tensor, version, values in self._tensors:
                    steps.callback(put_back, tensor, version, values)
                for module, names, own in self._kept:
                    steps.callback(self._put_attributes, vars(module), names, own, but)
                for container, entries in self._containers:
                    steps.callback(_refill, container, entries)

    def _put_attributes(self, live: dict[str, Any], names: Any, own: Mapping[str, Any], but: str | None) -> None:
        for name in [name for name in live if name not in names and _is_state(name, live[name])]:
            if but is None or not name.startswith(but):
                del live[name]
        for name, value in own.items():
            if live.get(name, self) is not value:
                live[name] = value


def put_back(tensor: Tensor, version: int, values: Tensor) -> None:
    """Give a tensor its values back if it was written since."""
    if writes(tensor) != version:
        with torch.no_grad():
            tensor.detach().copy_(values)


def _refill(container: Any, entries: Any) -> None:
    if not _same(container, entries):
        container.clear()
        (container.extend if isinstance(container, list) else container.update)(entries)


def _same(container: Any, entries: Any) -> bool:
    """Whether a container still holds the same objects."""
    if isinstance(container, set) or len(container) != len(entries):
        return bool(container == entries)
    if isinstance(container, dict):
        return all(key in container and container[key] is value for key, value in entries.items())
    return all(one is other for one, other in zip(container, entries, strict=True))


def _is_state(name: str, value: Any) -> bool:
    if name in _OTHERS or name.endswith("_hooks") or name.startswith("_forward_") or not isinstance(value, _STATE):
        return False
    return not isinstance(value, (list, dict, set, tuple)) or not _holds_module(value, DEPTH)


def _holds_module(value: Any, depth: int) -> bool:
    if isinstance(value, nn.Module) or callable(value):
        return True
    if not depth or not isinstance(value, (list, dict, set, tuple)):
        return False
    return any(_holds_module(item, depth - 1) for item in (value.values() if isinstance(value, dict) else value))
