"""A factorised layer: a chain of plain layers in place of a dense one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, fx, nn

from .functional import shown
from .kinds import Role, is_convolution, is_transposed, output_first, site_kind
from .lazy_weight import LazyWeight

Ranks = tuple[int, ...]


class ChainFormat(Protocol):
    """What a chain asks of its format."""

    @property
    def name(self) -> str:
        """Name of the format."""

    def chain_weight(self, chain: LowRank) -> Tensor:
        """The dense weight that the chain computes, O x I/G [x kernel]."""

    def chain_bias(self, chain: LowRank) -> Tensor | None:
        """The bias that the chain adds."""

    def cut(self, chain: LowRank, ranks: Ranks) -> LowRank:
        """The chain with the leading columns of its factors."""


class LowRank(nn.Sequential):
    """A factorised layer: a chain of plain layers that other code can read like a dense one.

    It has the public attributes of the layer that it replaced, such as `in_features`, `stride` and those that the user
    has set.

    Attributes:
        kind: of the layer that it replaced.
        role: how its site uses the weight.
    """

    # Scripting must compile the forward only, not these properties.
    __jit_unused_properties__ = ("weight", "bias", "weight_shape")

    if TYPE_CHECKING:  # scripting reads class annotations and cannot resolve these
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
        # Convolutions accept one picture without a batch; the other layers of a chain do not.
        alone = is_convolution(self.kind) and not all(is_convolution(site_kind(layer)) for layer in layers)
        self.batch_dims = len(self.kernel_size) + 2 if alone else 0

    def forward(self, input: Tensor) -> Tensor:  # the name that the dense layers give it
        output = with_batch(input, self.batch_dims) if self.batch_dims else input
        for layer in self:
            output = layer(output)
        return like_input(output, input, self.batch_dims) if self.batch_dims else output

    def at(self, ranks: Ranks | int) -> LowRank:
        """The chain at smaller ranks: the leading columns of its factors, in the same memory.

        Writing into one writes into both; each has its own gradients.

        Args:
            ranks: none larger than now.

        Raises:
            ValueError: if factors of the format are not nested, a rank is larger, or there are several groups.

        Example:
            >>> from rankwise.formats.svd import SVD
            >>> chain = SVD().build(nn.Linear(8, 8), (4,), bias=True)
            >>> chain.at(2).ranks, sum(p.numel() for p in chain.at(2).parameters())
            ((2,), 40)
        """
        return self.format.cut(self, (ranks,) if isinstance(ranks, int) else tuple(ranks))

    @property
    def bias(self) -> Tensor | None:
        """The bias that the chain adds; computed if no layer holds it."""
        return self.format.chain_bias(self)

    @property
    def weight(self) -> Tensor:
        """The dense weight of the chain, in the layout of the layer it replaced; computed at every access."""
        weight = self.format.chain_weight(self)
        return output_first(self.kind, weight, getattr(self, "groups", 1))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, in the layout of the layer that the chain replaced."""
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
    """A factorised layer in a network: its weight is computed only when values are needed."""

    @property
    def weight(self) -> Tensor:
        """The dense weight: a tensor that knows its shape, dtype and device, and is computed when used."""
        if (own := shown(self)) is not None:
            return own[0]
        if torch.compiler.is_compiling():  # the compiler itself drops what is not used
            return super().weight
        return self.lazy_weight()

    @property
    def bias(self) -> Tensor | None:
        """The bias that the chain adds; computed if no layer holds it."""
        own = shown(self)
        return super().bias if own is None else own[1]

    def lazy_weight(self) -> LazyWeight:
        """The dense weight, not computed yet."""
        parameters = list(self.parameters())
        wants_grad = any(parameter.requires_grad for parameter in parameters)
        return LazyWeight(self._dense_weight, parameters[0], self.weight_shape, wants_grad)

    def _dense_weight(self) -> Tensor:
        for watcher in _watching.watchers:
            watcher(self)
        return super().weight


class _Watching(threading.local):
    """The watchers of a thread; they do not see other threads."""

    def __init__(self) -> None:
        self.watchers: list[Callable[[LowRank], None]] = []


_watching = _Watching()


def is_factorised(network: nn.Module) -> bool:
    """Whether a network has a factorised layer."""
    return any(isinstance(module, LowRank) for module in network.modules())


@contextmanager
def watching_weights(watcher: Callable[[LowRank], None]) -> Iterator[None]:
    """Inside, `watcher` is called with each chain whose dense weight is computed in this thread."""
    _watching.watchers.append(watcher)
    try:
        yield
    finally:
        _watching.watchers.remove(watcher)


@fx.wrap
def with_batch(x: Tensor, dims: int) -> Tensor:
    """The input of a convolution, with a batch dimension added if it has none."""
    return x if x.dim() == dims else x[None]


@fx.wrap
def like_input(y: Tensor, x: Tensor, dims: int) -> Tensor:
    """The output of a convolution, without a batch dimension if its input had none."""
    return y if x.dim() == dims else y[0]
