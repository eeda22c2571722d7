"""Layers whose weight a module passes to `F.linear` itself: they are called instead.

`F.linear(x, self.qkv.weight, self.qkv.bias)` runs no forward of `qkv`: no hook sees it, and a factorised layer would
have to put its dense weight together. Inside a forward that is run by `CallsLayers`, it is `self.qkv(x)`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class CallsLayers:
    """The forward of a module, in which `F.linear` with the weight of a layer is a call of that layer.

    Args:
        host: the module.
        layers: names of its layers, from the module.

    Attributes:
        biased: names of those that had a bias when this was made.

    Example:
        >>> import torch
        >>> class Host(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = nn.Linear(2, 2)
        ...     def forward(self, x):
        ...         return F.linear(x, self.fc.weight, self.fc.bias)
        >>> host, calls = Host(), []
        >>> _ = host.fc.register_forward_hook(lambda *call: calls.append("fc"))
        >>> host.forward = CallsLayers(host, ["fc"])
        >>> _ = host(torch.ones(1, 2))
        >>> calls
        ['fc']
    """

    def __init__(self, host: nn.Module, layers: Sequence[str]) -> None:
        self.host = host
        self.layers = tuple(layers)
        self.biased = frozenset(name for name in layers if getattr(host.get_submodule(name), "bias", None) is not None)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.host).forward.__get__(self.host))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Calling({name: self.host.get_submodule(name) for name in self.layers}, self.biased):
            return type(self.host).forward(self.host, *args, **kwargs)


class _Held(threading.local):
    """By id of a factorised layer, the weight and bias that it shows while its host runs in this thread."""

    def __init__(self) -> None:
        self.shown: dict[int, tuple[Tensor, Tensor | None]] = {}


_held = _Held()


def shown(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """The weight and bias that a factorised layer shows to a running host, None where none runs."""
    return _held.shown.get(id(layer))


class _Calling(TorchFunctionMode):
    """Inside, `F.linear` with the weight of one of the layers calls that layer."""

    def __init__(self, layers: Mapping[str, Any], biased: frozenset[str]) -> None:
        super().__init__()
        self.layers, self.biased = layers, biased

    def __enter__(self) -> Any:
        # A factorised layer makes a new weight at each access: the host gets the one that is recognised.
        self.before = dict(_held.shown)
        self.names: dict[int, str] = {}
        self.own: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, layer in self.layers.items():
            make = getattr(layer, "lazy_weight", None)
            self.own[name] = (layer.weight if make is None else make(), getattr(layer, "bias", None))
            self.names[id(self.own[name][0])] = name
            if make is not None:
                _held.shown[id(layer)] = self.own[name]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _held.shown = self.before
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs or {})
            name = self.names.get(id(given["weight"]))
            if name is not None:
                return self._call(name, given["input"], given.get("bias"))
        return func(*args, **(kwargs or {}))

    def _call(self, name: str, x: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = self.layers[name](x)
        own = self.own[name][1]
        if bias is None or bias is own:  # no bias is what the host passes for a layer without one
            return output
        # The host changed the bias, or has one beside the layer.
        return output + (bias - own if name in self.biased and own is not None else bias)
