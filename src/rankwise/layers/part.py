"""What a chain may consist of: layers of PyTorch and parts of our own, unchanged since they were built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from .kinds import CLASSES


class Part(nn.Module):
    """A part of a chain that is not a layer of PyTorch."""

    # Names of the tensors that the part itself holds.
    own: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})

    def inner(self) -> list[nn.Module]:
        """The layers inside."""
        lists = [each if isinstance(each, nn.ModuleList) else [each] for each in self.children()]
        return [layer for layers in lists for layer in layers]


def check_order(state_dict: Mapping[str, Tensor], name: str, outputs: int) -> None:
    """Refuse a stored tensor that is not an order of the outputs."""
    order = state_dict.get(name)
    if order is not None and order.sort().values.tolist() != list(range(outputs)):
        raise ValueError(f"tensor {name!r} is not an order of {outputs} outputs; save the network again")


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is unchanged since it was built: no parametrisation, no adapter, no subclass.

    Example:
        >>> is_plain(nn.Linear(2, 2)), is_plain(nn.ReLU())
        (True, False)
    """
    if isinstance(layer, Part):
        own = {name for name in layer.state_dict() if "." not in name}
        return own <= layer.own and all(map(is_plain, layer.inner()))
    return type(layer) in CLASSES and layer.state_dict().keys() <= {"weight", "bias"}
