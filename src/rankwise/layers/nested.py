"""Layers of a weight with further ranks for important inputs and outputs: branches of inputs, bands of outputs.

Each group of a convolution has its own important neurons, all groups the same number of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .part import Part, check_order


class Branches(Part):
    """Layers side by side, each on all channels or on the first gathered ones: `cat(f(x), g(x[inputs]))`.

    Args:
        layers: one per level.
        counts: channels per group that each layer reads.
        channels: per group of the input.
        groups: of the channels.
        spatial: dimensions after the channels; 0 for a linear layer, whose features come last.
        device: of the indices.

    Example:
        >>> branches = Branches([nn.Linear(2, 1, bias=False)], [2], 3, 1, 0)
        >>> branches.inputs.tolist(), branches(torch.ones(4, 3)).shape
        ([0, 1], torch.Size([4, 1]))
    """

    own = frozenset({"inputs"})

    def __init__(
        self,
        layers: Sequence[nn.Module],
        counts: Sequence[int],
        channels: int,
        groups: int,
        spatial: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(layers)
        self.counts, self.channels, self.groups, self.spatial = tuple(counts), channels, groups, spatial
        self.dim = -1 - spatial  # of the channels
        self.gathered = gathered = max((count for count in counts if count < channels), default=0)
        places = torch.arange(groups * channels, device=device).reshape(groups, channels)[:, :gathered]
        self.register_buffer("inputs", places.flatten().int() if gathered else None)
        self.inputs: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        gathered = x if self.inputs is None else x.index_select(self.dim, self.inputs)
        size = self.channels if self.inputs is None else self.gathered  # absorbed: the inputs come sorted
        parts = []
        for number, layer in enumerate(self.levels):
            count = self.counts[number]
            if count == self.channels:
                parts.append(layer(x))
            else:
                parts.append(layer(first_of(gathered, count, size, self.groups, self.dim)))
        if len(parts) == 1:
            return parts[0]
        if self.groups == 1:
            return torch.cat(parts, self.dim)
        parts = [part.unflatten(self.dim, (self.groups, -1)) for part in parts]
        return torch.cat(parts, self.dim).flatten(self.dim - 1, self.dim)

    def places(self) -> Tensor:
        """Numbers within each group of the gathered channels, G x C; all channels in order if none are gathered."""
        if self.inputs is None:
            device = next(self.parameters()).device
            return torch.arange(self.channels, device=device).expand(self.groups, -1)
        return self.inputs.reshape(self.groups, -1).long() % self.channels

    def extra_repr(self) -> str:
        return f"{list(self.counts)} of {self.channels} channels"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        inputs = state_dict.get(f"{prefix}inputs")
        if inputs is not None and self.inputs is not None and inputs.shape == self.inputs.shape:
            groups = torch.arange(self.groups, device=inputs.device).repeat_interleave(len(inputs) // self.groups)
            if not torch.equal(inputs.div(self.channels, rounding_mode="floor"), groups) or len(inputs.unique()) < len(
                inputs
            ):
                raise ValueError(
                    f"tensor '{prefix}inputs' does not name different channels of each group of {self.channels}; save "
                    f"the network again"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


class Bands(Part):
    """Bands of outputs, each from the first inputs, and zeros for the rest: `cat(f(h), g(h[:r]), 0)[order] + bias`.

    Args:
        layers: one per band, the one with most inputs first.
        counts: inputs per group that each layer reads.
        outputs: of all groups together.
        made: outputs of each band, per group.
        groups: of the inputs.
        spatial: as for `Branches`.
        bias: whether there is one.
        options: dtype and device.

    Example:
        >>> bands = Bands([nn.Linear(2, 1, bias=False)], [2], 3, [1], 1, 0, bias=True)
        >>> bands(torch.ones(4, 2)).shape, bands.order.tolist()
        (torch.Size([4, 3]), [0, 1, 2])
    """

    own = frozenset({"order", "bias"})

    def __init__(
        self,
        layers: Sequence[nn.Module],
        counts: Sequence[int],
        outputs: int,
        made: Sequence[int],
        groups: int,
        spatial: int,
        bias: bool,
        **options: Any,
    ) -> None:
        super().__init__()
        self.bands = nn.ModuleList(layers)
        self.counts, self.made, self.outputs = tuple(counts), tuple(made), outputs
        self.groups, self.spatial = groups, spatial
        self.dim = -1 - spatial  # of the channels
        self.missing = outputs - groups * sum(made)
        self.padding, self.shape = [0, 0] * spatial + [0, self.missing], (-1, *[1] * spatial)
        self.bias = nn.Parameter(torch.zeros(outputs, **options)) if bias else None
        whole = list(made) == [outputs // groups]  # a single band of all outputs needs no order
        order = None if whole else self.order_of(torch.arange(outputs, device=options.get("device")))
        self.register_buffer("order", order)
        self.order: Tensor | None

    def order_of(self, outputs: Tensor) -> Tensor:
        """For every output its place in what the bands make; `outputs` lists each group by importance."""
        places = outputs.reshape(self.groups, -1)
        parts = places.split([*self.made, places.shape[1] - sum(self.made)], 1)
        return torch.cat([part.flatten() for part in parts]).argsort().int()

    def forward(self, h: Tensor) -> Tensor:
        parts = []
        for number, layer in enumerate(self.bands):
            parts.append(layer(first_of(h, self.counts[number], self.counts[0], self.groups, self.dim)))
        y = parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)
        if self.missing:
            y = F.pad(y, self.padding)
        if self.order is not None:
            y = y.index_select(self.dim, self.order)
        return y if self.bias is None else y + self.bias.view(self.shape)

    def extra_repr(self) -> str:
        return f"{list(self.made)} of {self.outputs // self.groups} outputs"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        check_order(state_dict, f"{prefix}order", self.outputs)
        super()._load_from_state_dict(state_dict, prefix, *args)


def first_of(x: Tensor, count: int, size: int, groups: int, dim: int) -> Tensor:
    """The first channels of each group of `size` channels; `dim` counts from the end.

    Example:
        >>> first_of(torch.arange(6), 1, 3, 2, -1).tolist()
        [0, 3]
    """
    if count == size:
        return x
    if groups == 1:
        return x.narrow(dim, 0, count)
    return x.unflatten(dim, (groups, size)).narrow(dim, 0, count).flatten(dim - 1, dim)
