"""The kinds of layers that can be factorised."""

from __future__ import annotations

from enum import Enum
from typing import Any

from torch import Tensor, nn

_CLASSES: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
    "embedding": nn.Embedding,
}
LAYERS = (*_CLASSES, "conv1d_hf")
CLASSES = frozenset(_CLASSES.values())
HF_HOME = "transformers.pytorch_utils"


class Role(Enum):
    """How the slots of a site use its weight. A format says which roles it takes."""

    LAYER = "layer"  # one layer, or several with one weight, multiply with it
    TABLE = "table"  # its rows are looked up
    TIED = "tied"  # its rows are looked up, and a head multiplies with it
    JOINT = "joint"  # several layers with the same input each hold some of its outputs
    HIDDEN = "hidden"  # one layer multiplies the hidden units with it that others compute
    HEADS = "heads"  # one layer multiplies the outputs of attention heads with it, whose values another computes
    FEEDER = "feeder"  # of a chain alone: it computes the hidden units or the values of a site


# Sites of a layer and of those that compute what it reads; each of their layers has a chain of its own.
FED = frozenset({Role.HIDDEN, Role.HEADS})


def site_kind(module: nn.Module) -> str | None:
    """The kind of a layer that may be a site, None for any other module.

    "conv1d_hf" is transformers' Conv1D, a linear layer that stores its weight transposed.

    Example:
        >>> site_kind(nn.Conv3d(4, 8, 3)), site_kind(nn.ReLU())
        ('conv3d', None)
    """
    for kind, cls in _CLASSES.items():
        if isinstance(module, cls):
            return kind
    # Compared by name: transformers may not be installed, and importing it takes seconds.
    for cls in type(module).__mro__:
        if (cls.__module__, cls.__name__) == (HF_HOME, "Conv1D"):
            return "conv1d_hf"
    return None


def is_convolution(kind: str | None) -> bool:
    """Whether layers of this kind have a kernel."""
    return kind is not None and kind.startswith("conv") and kind != "conv1d_hf"


def is_transposed(kind: str | None) -> bool:
    """Whether layers of this kind are transposed convolutions."""
    return kind is not None and kind.startswith("conv_transpose")


def spatial_dims(layer: Any) -> int:
    """Number of spatial dimensions of a convolution, 0 for any other layer."""
    return len(layer.kernel_size) if is_convolution(site_kind(layer)) else 0


def output_first(kind: str | None, weight: Tensor, groups: int = 1) -> Tensor:
    """Swap a weight between its stored layout and O x I/groups [x kernel]; twice gives the weight back.

    Args:
        kind: of the layer; None if it stores its weight as a linear layer does.
        weight: in one of the two layouts.

    Example:
        >>> output_first("conv1d_hf", nn.Linear(3, 5).weight).shape
        torch.Size([3, 5])
    """
    if kind in ("conv1d_hf", "embedding"):
        return weight.mT
    if is_transposed(kind):  # I x O/groups x kernel
        return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight
