"""Convolutions that do the work of a dense one in some of its directions: the layers of chains."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from ..layers.kinds import is_transposed, site_kind

# By number of dimensions, from 1.
PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def convolution(
    like: Any, inputs: int, outputs: int, groups: int, held: Collection[int] | None = None, **options: Any
) -> nn.Module:
    """A convolution with the kernel, stride, padding and dilation of another one in the directions that it holds.

    In all other directions it is 1 wide and moves by 1. Convolutions that together hold each direction once therefore
    give the output size of the dense one. A plain 1 x 1 convolution holds none.

    Args:
        like: the dense convolution; if it is transposed, so is the new one, unless it holds no direction.
        inputs, outputs, groups: of the new one.
        held: directions of the kernel, all by default.
        options: bias, dtype and device.

    Example:
        >>> convolution(nn.Conv2d(8, 8, 3, 2, 1), 8, 4, 1, held=[1])
        Conv2d(8, 4, kernel_size=(1, 3), stride=(1, 2), padding=(0, 1))
    """
    dims = len(like.kernel_size)
    held = range(dims) if held is None else held
    if not held:
        return PLAIN[dims - 1](inputs, outputs, 1, groups=groups, **options)

    def picked(values: Sequence[int], other: int) -> Any:
        return tuple(values[d] if d in held else other for d in range(dims))

    options |= {
        "kernel_size": picked(like.kernel_size, 1),
        "stride": picked(like.stride, 1),
        "padding": like.padding if isinstance(like.padding, str) else picked(like.padding, 0),
        "dilation": picked(like.dilation, 1),
        "groups": groups,
        "padding_mode": like.padding_mode,
    }
    if is_transposed(site_kind(like)):
        options["output_padding"] = picked(like.output_padding, 0)
        return TRANSPOSED[dims - 1](inputs, outputs, **options)
    return PLAIN[dims - 1](inputs, outputs, **options)
