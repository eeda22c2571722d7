"""Layers of every kind that can be factorised, in harder settings, each with the shape of an input."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def conv1d_hf(outputs: int, inputs: int) -> nn.Module:
    """The linear layer of transformers, whose weight is stored transposed."""
    from transformers.pytorch_utils import Conv1D

    made: nn.Module = Conv1D(outputs, inputs)
    return made


IMAGE = (2, 8, 8, 7)
SIGNAL, VOLUME, SMALL = (4, 8, 13), (2, 8, 5, 4, 3), (2, 4, 5, 4, 3)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(10, 7), (3, 5, 10)),
    "linear, no bias": (lambda: nn.Linear(6, 11, bias=False), (4, 6)),
    "transformers' Conv1D": (lambda: conv1d_hf(9, 6), (2, 4, 6)),
    "1 x 1": (lambda: nn.Conv2d(8, 6, 1), IMAGE),
    "1 x 1, stride 2, padding 1": (lambda: nn.Conv2d(8, 6, 1, 2, 1, bias=False), IMAGE),
    "1 x 3": (lambda: nn.Conv2d(8, 6, (1, 3), padding=(0, 1)), IMAGE),
    "3 x 3": (lambda: nn.Conv2d(8, 6, 3, padding=1), IMAGE),
    "3 x 3, no padding, no bias": (lambda: nn.Conv2d(8, 10, 3, bias=False), IMAGE),
    "stride (2, 1)": (lambda: nn.Conv2d(8, 6, 3, (2, 1), 1), IMAGE),
    "dilation 2": (lambda: nn.Conv2d(8, 6, 3, padding=2, dilation=2), IMAGE),
    "5 x 3, all uneven": (lambda: nn.Conv2d(8, 6, (5, 3), (2, 1), (1, 4), (1, 2)), IMAGE),
    "same": (lambda: nn.Conv2d(8, 6, 3, padding="same", dilation=(1, 2)), IMAGE),
    "same, even kernel": (lambda: nn.Conv2d(8, 6, (4, 2), padding="same", dilation=(1, 3)), IMAGE),
    "same, even kernel, reflect": (lambda: nn.Conv2d(8, 6, (2, 4), padding="same", padding_mode="reflect"), IMAGE),
    "valid": (lambda: nn.Conv2d(8, 6, 3, padding="valid"), IMAGE),
    "reflect": (lambda: nn.Conv2d(8, 6, 3, padding=(1, 2), padding_mode="reflect"), IMAGE),
    "circular": (lambda: nn.Conv2d(8, 6, 3, (1, 2), (2, 1), padding_mode="circular", bias=False), IMAGE),
    "replicate": (lambda: nn.Conv2d(8, 6, 3, 2, 1, padding_mode="replicate"), IMAGE),
    "groups 2": (lambda: nn.Conv2d(8, 6, 3, padding=1, groups=2), IMAGE),
    "groups 4, all uneven": (lambda: nn.Conv2d(8, 12, (3, 2), (2, 1), (1, 2), (1, 2), groups=4, bias=False), IMAGE),
    "groups 2, 1 x 1": (lambda: nn.Conv2d(8, 6, 1, groups=2), IMAGE),
    "1-D": (lambda: nn.Conv1d(8, 6, 3, padding=1), SIGNAL),
    "1-D, 1 tap, stride 2": (lambda: nn.Conv1d(8, 6, 1, 2, bias=False), SIGNAL),
    "1-D, same, even kernel, reflect": (lambda: nn.Conv1d(8, 6, 4, padding="same", padding_mode="reflect"), SIGNAL),
    "1-D, groups 2, all uneven": (lambda: nn.Conv1d(8, 6, 5, 2, 3, 2, groups=2, bias=False), SIGNAL),
    "3-D": (lambda: nn.Conv3d(8, 6, 3, padding=1), VOLUME),
    "3-D, 1 tap, groups 2": (lambda: nn.Conv3d(8, 6, 1, groups=2), VOLUME),
    "3-D, same, circular": (lambda: nn.Conv3d(4, 6, (3, 1, 2), padding="same", padding_mode="circular"), SMALL),
    "3-D, groups 2, all uneven": (lambda: nn.Conv3d(8, 6, (3, 2, 1), (1, 2, 1), (2, 0, 1), (2, 1, 1), 2), VOLUME),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 4, 2, 1), (2, 8, 5, 4)),
    "transposed, 1 tap, stride 2": (lambda: nn.ConvTranspose2d(8, 6, 1, 2, bias=False), (2, 8, 5, 4)),
    "transposed, groups 2, all uneven": (
        lambda: nn.ConvTranspose2d(8, 6, (3, 4), (2, 3), (1, 2), (1, 2), 2, dilation=(2, 1)),
        (2, 8, 5, 4),
    ),
    "transposed, 1-D, groups 2": (lambda: nn.ConvTranspose1d(8, 6, 5, 3, 2, 1, groups=2, bias=False), (4, 8, 7)),
    "transposed, 3-D": (lambda: nn.ConvTranspose3d(8, 6, (2, 3, 1), (1, 2, 1), (1, 1, 0), (0, 1, 0)), (2, 8, 4, 3, 3)),
}
