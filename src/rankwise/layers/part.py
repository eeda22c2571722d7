"""What a chain may consist of: layers of PyTorch, and parts of our own, as they were built."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from .kinds import CLASSES


class Part(nn.Module):
    """A part of a chain that is no layer of PyTorch."""

    # Names of the tensors that it holds itself.
    own: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})

    def inner(self) -> list[nn.Module]:
        """The layers in it."""
        lists = [each if isinstance(each, nn.ModuleList) else [each] for each in self.children()]
        return [layer for layers in lists for layer in layers]


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is as it was built: no parametrisation, no adapter, no subclass.

    Example:
        >>> is_plain(nn.Linear(2, 2)), is_plain(nn.ReLU())
        (True, False)
    """
    if isinstance(layer, Part):
        own = {name for name in layer.state_dict() if "." not in name}
        return own <= layer.own and all(map(is_plain, layer.inner()))
    return type(layer) in CLASSES and layer.state_dict().keys() <= {"weight", "bias"}
