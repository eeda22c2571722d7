"""Layers of a weight whose important outputs and inputs have further ranks: branches at the inputs, bands of outputs.

Every group of a convolution has important neurons of its own, and as many of them as the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .part import Part


class Branches(Part):
    """Layers side by side, each on all channels or on the first of those that are gathered: `cat(f(x), g(x[inputs]))`.

    Args:
        layers: one for each level.
        counts: channels per group that each one reads.
        channels: per group of the input.
        groups: of the channels.
        spatial: dimensions after the channels, 0 for the features of a linear layer, which come last.
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
        size = self.channels if self.inputs is None else self.gathered  # sorted inputs need no gathering
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
        """Numbers, within their group, of the channels that are gathered; the first ones where none are, G x C."""
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
    """Bands of outputs, each from the first inputs, and zeros for the others: `cat(f(h), g(h[:r]), 0)[order] + bias`.

    Args:
        layers: one for each band, that of the most inputs first.
        counts: inputs per group that each one reads.
        outputs: of all groups together.
        made: outputs of every band, per group.
        groups: of the inputs.
        spatial: dimensions after the channels.
        bias: whether a number is added to every output.
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
        whole = list(made) == [outputs // groups]  # one band of all outputs needs no order
        order = None if whole else self.order_of(torch.arange(outputs, device=options.get("device")))
        self.register_buffer("order", order)
        self.order: Tensor | None

    def order_of(self, outputs: Tensor) -> Tensor:
        """For every output its place among those that the bands make.

        Args:
            outputs: numbers of the outputs, group after group, the most important of each group first.
        """
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
        order = state_dict.get(f"{prefix}order")
        if order is not None and order.sort().values.tolist() != list(range(self.outputs)):
            raise ValueError(f"tensor '{prefix}order' is no order of {self.outputs} outputs; save the network again")
        super()._load_from_state_dict(state_dict, prefix, *args)


def first_of(x: Tensor, count: int, size: int, groups: int, dim: int) -> Tensor:
    """The first channels of every group of `size` channels; `dim` is counted from the end.

    Example:
        >>> first_of(torch.arange(6), 1, 3, 2, -1).tolist()
        [0, 3]
    """
    if count == size:
        return x
    if groups == 1:
        return x.narrow(dim, 0, count)
    return x.unflatten(dim, (groups, size)).narrow(dim, 0, count).flatten(dim - 1, dim)
