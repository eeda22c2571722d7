"""Parts of a chain that are neither Linear nor convolution: reorder channels, add a bias, multiply by groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .part import Part, check_order


class Arrange(Part):
    """Reorder the modes that the channels consist of, some of which wait among the samples as rows.

    Rows and channels are read as modes of given sizes, put into another order, and split into rows and channels again.
    Nothing is computed.

    Args:
        sizes: of the modes, first those of the rows, then those of the channels.
        order: new order of the modes.
        rows: number of modes among the rows, before and after.
        spatial: dimensions after the channels: 2 for images, 0 for a linear layer, whose features come last.

    Example:
        >>> Arrange((2, 3), (1, 0), (0, 0), 0)(torch.arange(6.0))
        tensor([0., 3., 1., 4., 2., 5.])
    """

    def __init__(self, sizes: Sequence[int], order: Sequence[int], rows: tuple[int, int], spatial: int) -> None:
        super().__init__()
        if len(sizes) in rows:  # one side has no channels: give it one mode of size 1
            sizes, order = (*sizes, 1), (*order, len(sizes))
        self.sizes, self.order = tuple(sizes), tuple(order)
        self.rows, self.spatial = rows, spatial
        # Everything that `forward` needs, as lists of numbers: it never looks at the input, so tracers can follow it.
        self.before, self.after = rows
        modes = len(sizes)
        self.row_sizes, self.channel_sizes = [-1, *sizes[: self.before]], list(sizes[self.before :])
        self.moved = [0, *(1 + mode for mode in order), *range(1 + modes, 1 + modes + spatial)]
        self.sources, self.places = [mode - modes for mode in order], list(range(-modes, 0))
        self.channels = [1 + self.after, modes] if spatial else [self.after - modes, -1]

    def forward(self, x: Tensor) -> Tensor:
        if self.spatial:  # rows are samples: N * rows, channels, spatial
            x = x.unflatten(1, self.channel_sizes)
            if self.before:
                x = x.unflatten(0, self.row_sizes)
            x = x.permute(self.moved).flatten(self.channels[0], self.channels[1])
            return x.flatten(0, self.after) if self.after else x
        x = x.unflatten(-1, self.channel_sizes)  # any leading dimensions, rows, features
        if self.before:
            x = x.unflatten(-1 - len(self.channel_sizes), self.row_sizes[1:])
        x = x.movedim(self.sources, self.places).flatten(self.channels[0], self.channels[1])
        return x.flatten(-1 - self.after, -2) if self.after else x

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}, order={self.order}, rows={self.rows}"


class Bias(Part):
    """Add a number per channel: the bias of a chain whose last factor does not make all outputs in order."""

    def __init__(self, features: int, spatial: int, **options: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(features, **options))
        self.spatial, self.shape = spatial, (-1, *[1] * spatial)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.view(self.shape)

    def extra_repr(self) -> str:
        return f"{len(self.bias)}"


class TransposedLinear(Part):
    """A linear layer without bias that stores its weight inputs first, `y = x W`.

    `nn.Linear` stores the weight of the opposite direction like this, so that the two can share one Parameter.

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


class Stacked(nn.ModuleList):
    """Layers with the same input as one layer, outputs side by side; a network itself calls them one by one.

    Example:
        >>> Stacked([nn.Linear(2, 3), nn.Linear(2, 1)])(torch.zeros(5, 2)).shape
        torch.Size([5, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self], -1)


class GroupedLinear(Part):
    """A linear layer whose groups of features stay apart, as in a grouped convolution."""

    def __init__(self, in_features: int, out_features: int, groups: int, **options: Any) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_features, in_features // groups, **options))

    def forward(self, x: Tensor) -> Tensor:
        x_GND = x.reshape(-1, self.groups, self.weight.shape[1]).transpose(0, 1)
        weight_GTD = self.weight.unflatten(0, (self.groups, -1))
        y = torch.bmm(x_GND, weight_GTD.transpose(1, 2)).transpose(0, 1).flatten(1)
        return y.reshape(x.shape[:-1] + y.shape[-1:])

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1] * self.groups}, {len(self.weight)}, groups={self.groups}"


class Kept(Part):
    """Says which of the numbers of a dense layer are left; it computes nothing.

    Args:
        kept: how many are left.
        of: how many there were.
    """

    own = frozenset({"places"})

    def __init__(self, kept: int, of: int, device: Any = None) -> None:
        super().__init__()
        self.of = of
        self.register_buffer("places", torch.arange(kept, dtype=torch.int32, device=device))
        self.places: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x

    def taken(self, x: Tensor) -> Tensor:
        """What is left of the numbers of the dense layer, which come last."""
        return x.index_select(-1, self.places)

    def extra_repr(self) -> str:
        return f"{len(self.places)} of {self.of}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        places = state_dict.get(f"{prefix}places")
        if places is not None and not (
            len(set(places.tolist())) == len(places) and int(places.min()) >= 0 and int(places.max()) < self.of
        ):
            raise ValueError(
                f"tensor '{prefix}places' does not pick {len(places)} of {self.of}; save the network again"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class Picked(Kept):
    """Pick the numbers that are left among those of a dense layer.

    Example:
        >>> part = Picked(2, 4)
        >>> _ = part.places.copy_(torch.tensor([1, 3]))
        >>> part(torch.tensor([5.0, 6.0, 7.0, 8.0]))
        tensor([6., 8.])
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.places)


class Spread(Kept):
    """Put the numbers that are left at their places among those of a dense layer, with zeros in between.

    Example:
        >>> part = Spread(2, 4)
        >>> _ = part.places.copy_(torch.tensor([1, 3]))
        >>> part(torch.tensor([6.0, 8.0]))
        tensor([0., 6., 0., 8.])
    """

    def forward(self, x: Tensor) -> Tensor:
        whole = x.new_zeros((*x.shape[:-1], self.of))
        return whole.index_copy(-1, self.places.long(), x)


class Pivoted(Part):
    """The inputs as outputs, followed by outputs made of them, in a new order: `y = cat(x, rest(x))[order]`.

    Args:
        rest: makes the other outputs; None if there are none.
        order: for each output its place in `cat(x, rest(x))`.
        spatial: as for `Arrange`.

    Example:
        >>> Pivoted(None, torch.tensor([2, 0, 1]), 0)(torch.tensor([5.0, 6.0, 7.0]))
        tensor([7., 5., 6.])
    """

    own = frozenset({"order"})

    def __init__(self, rest: nn.Module | None, order: Tensor, spatial: int) -> None:
        super().__init__()
        self.rest = rest
        self.spatial, self.dim = spatial, -1 - spatial  # of the channels
        self.register_buffer("order", order.int())
        self.order: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.rest is not None:
            x = torch.cat([x, self.rest(x)], self.dim)
        return x.index_select(self.dim, self.order)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        check_order(state_dict, f"{prefix}order", len(self.order))
        super()._load_from_state_dict(state_dict, prefix, *args)
