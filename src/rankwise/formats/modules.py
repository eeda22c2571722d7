"""Parts of a chain that are no Linear and no convolution: move channels about, add a bias, multiply by groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Arrange(nn.Module):
    """Reorder the modes that the channels (and the rows beside them) consist of.

    The channels, together with what of them already stands among the samples, are read as modes of given sizes, put
    into another order, and split anew into rows and channels. Nothing is computed.

    Args:
        sizes: of the modes: those among the rows first, then those of the channels.
        order: new order of the modes.
        rows: how many modes stand among the rows before and after.
        spatial: dimensions after the channels: 2 for images, 0 for the features of a linear layer, which come last.

    Example:
        >>> Arrange((2, 3), (1, 0), (0, 0), 0)(torch.arange(6.0))
        tensor([0., 3., 1., 4., 2., 5.])
    """

    def __init__(self, sizes: Sequence[int], order: Sequence[int], rows: tuple[int, int], spatial: int) -> None:
        super().__init__()
        self.sizes, self.order = tuple(sizes), tuple(order)
        self.rows, self.spatial = rows, spatial

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.rows
        moved = [self.sizes[mode] for mode in self.order]
        channels = math.prod(moved[after:])
        if self.spatial:  # rows are samples: N * rows, channels, spatial
            size = x.shape[x.dim() - self.spatial :]
            modes = x.reshape(-1, *self.sizes, *size)
            trailing = range(1 + len(self.sizes), modes.dim())
            x = modes.permute(0, *(1 + mode for mode in self.order), *trailing)
            return x.reshape(-1, channels, *size)
        lead = x.shape[: x.dim() - (2 if before else 1)]  # any leading dimensions, rows, features
        modes = x.reshape(*lead, *self.sizes)
        x = modes.permute(*range(len(lead)), *(len(lead) + mode for mode in self.order))
        return x.reshape(*lead, *([math.prod(moved[:after])] if after else []), channels)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}, order={self.order}, rows={self.rows}"


class Bias(nn.Module):
    """Add a number per channel: the bias of a chain whose last factor does not make all outputs at once."""

    def __init__(self, features: int, spatial: int, **options: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(features, **options))
        self.spatial = spatial

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.view(-1, *[1] * self.spatial)

    def extra_repr(self) -> str:
        return f"{len(self.bias)}"


class TransposedLinear(nn.Module):
    """A linear layer without bias that stores its weight inputs first, `y = x W`.

    That is how `nn.Linear` stores the weight of the opposite direction, so that the two can share one Parameter.

    Example:
        >>> TransposedLinear(3, 2).weight.shape
        torch.Size([3, 2])
    """

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features, **options))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


class GroupedLinear(nn.Module):
    """A linear layer whose groups of features meet only each other, as in a grouped convolution."""

    def __init__(self, in_features: int, out_features: int, groups: int, **options: Any) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_features, in_features // groups, **options))

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-1]
        weight = self.weight.reshape(self.groups, -1, self.weight.shape[1])
        x = x.reshape(-1, self.groups, self.weight.shape[1]).transpose(0, 1)
        return torch.bmm(x, weight.mT).transpose(0, 1).reshape(*lead, -1)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1] * self.groups}, {len(self.weight)}, groups={self.groups}"


class Pivoted(nn.Module):
    """Outputs of which the first are the inputs themselves: `y = cat(x, rest(x))[order]`.

    Args:
        rest: makes the other outputs; None where there are none.
        order: for every output its place among the inputs and what `rest` makes.
        spatial: dimensions after the channels, 0 for the features of a linear layer, which come last.

    Example:
        >>> Pivoted(None, torch.tensor([2, 0, 1]), 0)(torch.tensor([5.0, 6.0, 7.0]))
        tensor([7., 5., 6.])
    """

    def __init__(self, rest: nn.Module | None, order: Tensor, spatial: int) -> None:
        super().__init__()
        self.rest = rest
        self.spatial = spatial
        self.register_buffer("order", order.int())
        self.order: Tensor

    def forward(self, x: Tensor) -> Tensor:
        dim = x.dim() - 1 - self.spatial
        if self.rest is not None:
            x = torch.cat([x, self.rest(x)], dim)
        return x.index_select(dim, self.order)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        order = state_dict.get(f"{prefix}order")
        if order is not None and order.sort().values.tolist() != list(range(len(self.order))):
            raise ValueError(f"tensor '{prefix}order' is no order of {len(self.order)} outputs; save the network again")
        super()._load_from_state_dict(state_dict, prefix, *args)
