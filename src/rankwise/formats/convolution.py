"""Convolutions that do the work of a dense one in some of its directions: the layers of chains."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..layers.kinds import is_transposed, site_kind

# By number of dimensions, from 1.
PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Taps(NamedTuple):
    """What a layer holds of one direction of a kernel that several layers share.

    Attributes:
        size: number of its taps.
        spread: distance between them in taps of the dense kernel.
        first, last: whether no layer before it, or after it, holds taps of this direction.
    """

    size: int
    spread: int
    first: bool
    last: bool


def convolution(
    like: Any,
    inputs: int,
    outputs: int,
    groups: int,
    held: Collection[int] | Mapping[int, Taps] | None = None,
    **options: Any,
) -> nn.Module:
    """A convolution with the kernel, stride, padding and dilation of another one in the directions that it holds.

    In all other directions it is 1 wide and moves by 1. Convolutions that together hold each direction once therefore
    give the output size of the dense one. A plain 1 x 1 convolution holds none.

    Several layers may share a direction, each with a part of its taps: with `h = m h1 + h2`, a kernel `A[h1] B[h2]` is
    `B`, and `A` with m times the dilation. The first one pads, the last one strides; of transposed convolutions the
    first one strides and the last one crops.

    Args:
        like: the dense convolution; if it is transposed, so is the new one, unless it holds no direction.
        inputs, outputs, groups: of the new one.
        held: directions of the kernel, all by default, each whole or as a part.
        options: bias, dtype and device.

    Example:
        >>> convolution(nn.Conv2d(8, 8, 3, 2, 1), 8, 4, 1, held=[1])
        Conv2d(8, 4, kernel_size=(1, 3), stride=(1, 2), padding=(0, 1))
    """
    dims = len(like.kernel_size)
    held = range(dims) if held is None else held
    if not held:
        return PLAIN[dims - 1](inputs, outputs, 1, groups=groups, **options)

    parts = held if isinstance(held, Mapping) else {d: Taps(like.kernel_size[d], 1, True, True) for d in held}
    transposed = is_transposed(site_kind(like))
    starting, ending = (d for d in parts if parts[d].first), (d for d in parts if parts[d].last)
    strided, padded = map(set, (starting, ending) if transposed else (ending, starting))

    def picked(values: Sequence[int], among: Collection[int], other: int) -> tuple[int, ...]:
        return tuple(values[d] if d in among else other for d in range(dims))

    options |= {
        "kernel_size": tuple(parts[d].size if d in parts else 1 for d in range(dims)),
        "stride": picked(like.stride, strided, 1),
        "padding": like.padding,
        "dilation": tuple(like.dilation[d] * parts[d].spread if d in parts else 1 for d in range(dims)),
        "groups": groups,
        "padding_mode": like.padding_mode,
    }
    if not isinstance(like.padding, str) or any(part.size != like.kernel_size[d] for d, part in parts.items()):
        options["padding"] = picked(paddings(like), padded, 0)
    if transposed:
        options["output_padding"] = picked(like.output_padding, strided, 0)
        return TRANSPOSED[dims - 1](inputs, outputs, **options)
    return PLAIN[dims - 1](inputs, outputs, **options)


def paddings(like: Any) -> tuple[int, ...]:
    """Zeros on either side of a convolution, or of the site of one, as numbers; "same" must pad both sides alike."""
    if like.padding == "valid":
        return (0,) * len(like.kernel_size)
    if like.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(like.dilation, like.kernel_size, strict=True))
    return tuple(like.padding)
