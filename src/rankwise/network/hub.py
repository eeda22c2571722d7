"""Refuse transformers' own ways of saving, which could not give a factorised network back."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

_METHODS = ("save_pretrained", "push_to_hub")


class _Refused:
    """Replaces a method of a factorised network that would lose its weights."""

    def __init__(self, name: str, model: str) -> None:
        self.name, self.model = name, model

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            f"{self.name} of a factorised {self.model} is refused: from_pretrained builds the dense layers again and "
            f"leaves them random; use rankwise.save(model, folder) and rankwise.load({self.model}(config), folder)"
        )


def refuse_pretrained(model: nn.Module) -> None:
    """Let a factorised network, and the models inside it, refuse to save what `from_pretrained` cannot restore."""
    for module in model.modules():
        for name in _METHODS:
            if hasattr(type(module), name):
                module.__dict__[name] = _Refused(name, type(module).__name__)


def allow_pretrained(model: nn.Module) -> None:
    """Undo it, for a network that is dense again."""
    for module in model.modules():
        for name in _METHODS:
            if isinstance(module.__dict__.get(name), _Refused):
                del module.__dict__[name]
