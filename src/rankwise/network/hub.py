"""transformers' own ways of saving: of factorised networks only where `rankwise.integrations` knows how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_METHODS = ("save_pretrained", "push_to_hub")
# What writes the networks of a class: it is called with the network, the name of a method and its arguments.
Writer = Callable[..., Any]
_writers: dict[type[nn.Module], Writer] = {}


def write_by(kind: type[nn.Module], writer: Writer) -> None:
    """From now on factorised networks of a class are saved by this function."""
    _writers[kind] = writer


class _Saving:
    """Stands in for a method of a factorised network that would lose its weights."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.name, self.model = name, model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for kind, writer in _writers.items():
            if isinstance(self.model, kind):
                return writer(self.model, self.name, *args, **kwargs)
        named = type(self.model).__name__
        first = (
            "import rankwise.integrations.transformers first, here and where it is loaded; or "
            if type(self.model).__module__.startswith("transformers.")
            else ""
        )
        raise ValueError(
            f"{self.name} of a factorised {named} is refused: from_pretrained builds the dense layers again and leaves "
            f"them random; {first}use rankwise.save(model, folder) and rankwise.load({named}(config), folder)"
        )


def guard_pretrained(model: nn.Module) -> None:
    """Let a factorised network, and the models inside it, not save what `from_pretrained` cannot restore."""
    for module in model.modules():
        for name in _METHODS:
            if hasattr(type(module), name):
                module.__dict__[name] = _Saving(name, module)


def allow_pretrained(model: nn.Module) -> None:
    """Undo it, for a network that is dense again."""
    for module in model.modules():
        for name in _METHODS:
            if isinstance(module.__dict__.get(name), _Saving):
                del module.__dict__[name]
