"""A factorised layer: a chain of plain layers in the place of a dense one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, fx, nn

from .kinds import Role, is_convolution, is_transposed, output_first, site_kind
from .lazy_weight import LazyWeight

Ranks = tuple[int, ...]


class ChainFormat(Protocol):
    """What a chain asks of its format."""

    @property
    def name(self) -> str:
        """Of the format."""

    def chain_weight(self, chain: LowRank) -> Tensor:
        """The dense weight that the chain computes, O x I/G [x kernel]."""

    def chain_bias(self, chain: LowRank) -> Tensor | None:
        """The bias that it adds."""

    def cut(self, chain: LowRank, ranks: Ranks) -> LowRank:
        """The chain of the leading columns of its factors."""


class LowRank(nn.Sequential):
    """A factorised layer: a chain of plain layers that offers what host code reads of a dense one.

    It has the public attributes of the layer that it replaced, such as `in_features`, `stride` or any that the user has
    set.

    Attributes:
        format: that the chain is in.
        ranks: its ranks.
        kind: of the layer that it replaced.
        role: how the site that it belongs to uses the weight.
    """

    # Scripting compiles the forward; these are for Python.
    __jit_unused_properties__ = ("weight", "bias", "weight_shape")

    if TYPE_CHECKING:  # scripting reads the annotations of a class and cannot resolve these
        in_features: int
        out_features: int
        in_channels: int
        out_channels: int
        groups: int
        kernel_size: tuple[int, ...]

    def __init__(self, format: ChainFormat, ranks: Ranks, layers: Sequence[nn.Module], like: nn.Module) -> None:
        super().__init__(*layers)
        self.format = format
        self.ranks = tuple(ranks)
        self.kind = site_kind(like)
        self.role = Role.TABLE if self.kind == "embedding" else Role.LAYER
        for name, value in vars(like).items():
            if not (name.startswith("_") or name in self.__dict__ or hasattr(type(self), name)):
                setattr(self, name, value)
        if self.kind == "conv1d_hf":
            weight = like.weight
            assert isinstance(weight, Tensor)
            self.in_features, self.out_features = self.nx, self.nf = weight.shape
        # Convolutions take one picture without a batch by themselves; the other layers of a chain do not.
        alone = is_convolution(self.kind) and not all(is_convolution(site_kind(layer)) for layer in layers)
        self.batch_dims = len(self.kernel_size) + 2 if alone else 0

    def forward(self, input: Tensor) -> Tensor:  # the name that the dense layers give it
        output = with_batch(input, self.batch_dims) if self.batch_dims else input
        for layer in self:
            output = layer(output)
        return like_input(output, input, self.batch_dims) if self.batch_dims else output

    def at(self, ranks: Ranks | int) -> LowRank:
        """The chain at smaller ranks: the leading columns of its factors, in the same memory.

        What is written into the one is written into the other; gradients are those of each chain alone.

        Args:
            ranks: of the format, each at most as large as now.

        Raises:
            ValueError: for a format whose factors are not nested, ranks that are larger, or several groups.

        Example:
            >>> from rankwise.formats.svd import SVD
            >>> chain = SVD().build(nn.Linear(8, 8), (4,), bias=True)
            >>> chain.at(2).ranks, sum(p.numel() for p in chain.at(2).parameters())
            ((2,), 40)
        """
        return self.format.cut(self, (ranks,) if isinstance(ranks, int) else tuple(ranks))

    @property
    def bias(self) -> Tensor | None:
        """The bias that the chain adds; computed anew where no layer holds it."""
        return self.format.chain_bias(self)

    @property
    def weight(self) -> Tensor:
        """The dense weight that the chain computes, in the layout of the layer it replaced; computed anew each time."""
        weight = self.format.chain_weight(self)
        return output_first(self.kind, weight, getattr(self, "groups", 1))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, in the layout of the layer that it replaced."""
        if is_convolution(self.kind):
            sides = (self.out_channels, self.in_channels)
            first, second = sides[::-1] if is_transposed(self.kind) else sides
            return (first, second // self.groups, *self.kernel_size)
        if self.kind == "embedding":
            return (self.num_embeddings, self.embedding_dim)  # type: ignore[return-value]
        shape = (self.out_features, self.in_features)
        return shape[::-1] if self.kind == "conv1d_hf" else shape

    def extra_repr(self) -> str:
        return f"format={self.format.name!r}, ranks={self.ranks}"


class LowRankLayer(LowRank):
    """A factorised layer as it stands in a network: its weight is computed only where values are asked for."""

    @property
    def weight(self) -> Tensor:
        """The dense weight, as a tensor that knows its shape, dtype and device, and is computed when it is used."""
        if torch.compiler.is_compiling():  # which drops what is not used by itself
            return super().weight
        parameters = list(self.parameters())
        wants_grad = any(parameter.requires_grad for parameter in parameters)
        return LazyWeight(self._dense_weight, parameters[0], self.weight_shape, wants_grad)

    def _dense_weight(self) -> Tensor:
        for watcher in _watching.watchers:
            watcher(self)
        return super().weight


class _Watching(threading.local):
    """The watchers of a thread: what another one runs is none of their business."""

    def __init__(self) -> None:
        self.watchers: list[Callable[[LowRank], None]] = []


_watching = _Watching()


@contextmanager
def watching_weights(watcher: Callable[[LowRank], None]) -> Iterator[None]:
    """Inside, `watcher` is told each chain whose dense weight is computed in this thread."""
    _watching.watchers.append(watcher)
    try:
        yield
    finally:
        _watching.watchers.remove(watcher)


@fx.wrap
def with_batch(x: Tensor, dims: int) -> Tensor:
    """The input of a convolution with a batch dimension."""
    return x if x.dim() == dims else x[None]


@fx.wrap
def like_input(y: Tensor, x: Tensor, dims: int) -> Tensor:
    """The output of a convolution, without a batch where its input had none."""
    return y if x.dim() == dims else y[0]
