"""Layers of two factors whose components are ordered by importance, so that the first ones are a smaller layer.

Letters: G groups, T outputs per group, D inputs per group (channels x taps), R components, B the first of them.

Source: Horvath, Laskaridis, Rajput, Wang, "Maestro: Uncovering Low-Rank Structures via Trainable Decomposition", 2023,
arXiv 2308.14929.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..formats.base import LowRank
from ..formats.building import layers_in
from ..formats.svd import SVD
from ..formats.weights import read, site_bias, site_weight
from ..layers.kinds import output_first, site_kind
from ..layers.low_rank import LowRankLayer
from ..linalg.metric import Metric
from ..network.replacing import replace
from ..network.sites import Sites
from ..running.exclusive import exclusive
from ..running.guards import unwrap
from ..statistics import Statistics
from ..statistics.moments import identity_metrics
from ..surgery.rebuild import rebuild
from ..training.trained_sites import trained_sites


class Ordered(LowRankLayer):
    """`y = U[:, :b] V[:b] x + bias` with b an integer: a k x k convolution to b channels, and a 1 x 1 convolution.

    `active` components are left; the others are no part of the layer any more. It is a buffer, so it is saved, loaded
    and the same in all processes. A step may `use` fewer.

    Args:
        chain: of the format svd, whose layers it takes.
    """

    active: Tensor

    def __init__(self, chain: LowRank) -> None:
        super().__init__(chain.format, chain.ranks, list(chain), chain)
        self.kind, self.role, self.batch_dims = chain.kind, chain.role, chain.batch_dims
        (self.count,) = chain.ranks
        self.used: int | None = None
        self.register_buffer("active", torch.tensor(self.count, device=read(chain[0]).device))

    def forward(self, input: Tensor) -> Tensor:
        count = self.count if self.used is None else min(self.used, self.count)
        if count == self.ranks[0]:
            return super().forward(input)
        first, last = layers_in(self)
        U_GTB, V_GBD = self.factors(max(count, 1))
        V_GBD = V_GBD if count else torch.zeros_like(V_GBD)  # convolutions need a channel
        hidden = functional_call(first, {"weight": self._stored(first, V_GBD)}, (input,))
        output: Tensor = functional_call(last, {"weight": self._stored(last, U_GTB)}, (hidden,))
        return output

    def factors(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first components, by default the active ones: U, G x T x B, and V, G x B x D; views where G is 1."""
        count = self.count if count is None else count
        first, last = (read(layer) for layer in layers_in(self))
        V_GRD = first.reshape(getattr(self, "groups", 1), self.ranks[0], -1)
        return last.reshape(len(V_GRD), -1, self.ranks[0])[:, :, :count], V_GRD[:, :count]

    @torch.no_grad()
    def write(self, U_GTB: Tensor, V_GBD: Tensor) -> None:
        """Set the first components; the others keep their values."""
        count = U_GTB.shape[2]
        U_GTR, V_GRD = (factor.clone() for factor in self.factors(self.ranks[0]))
        U_GTR[:, :, :count], V_GRD[:, :count] = U_GTB, V_GBD
        for layer, factor in zip(layers_in(self), (V_GRD, U_GTR), strict=True):
            layer.weight.copy_(self._stored(layer, factor))

    @torch.no_grad()
    def keep(self, count: int) -> None:
        """Leave only the first active components; the values of the others become 0."""
        if not 0 <= count <= self.count:
            raise ValueError(f"{self.count} components are left, so {count} cannot be kept")
        U_GTR, V_GRD = (factor.clone() for factor in self.factors(self.ranks[0]))
        U_GTR[:, :, count:], V_GRD[:, count:] = 0, 0
        self.write(U_GTR, V_GRD)
        self.active.fill_(count)
        self.count = count

    def _stored(self, layer: Any, factor: Tensor) -> Tensor:
        """A factor as the layer stores it: the first one by its kernel, the last one by single positions."""
        own = read(layer)
        if layer is self[0]:
            return output_first(site_kind(layer), factor.reshape(-1, *own.shape[1:]), getattr(layer, "groups", 1))
        return output_first(site_kind(layer), factor.reshape(len(own), -1, *own.shape[2:]), 1)

    def _dense_weight(self) -> Tensor:
        U_GTB, V_GBD = self.factors()
        first, last = (read(layer) for layer in layers_in(self))
        weight = (U_GTB @ V_GBD).reshape(len(last), *first.shape[1:])
        return output_first(self.kind, weight, getattr(self, "groups", 1))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.count = int(self.active)

    def extra_repr(self) -> str:
        return f"{self.count} of {self.ranks[0]} components"


@exclusive
def order_(model: nn.Module, source: Sites | Statistics, only: str | Iterable[str] = "*") -> nn.Module:
    """Replace the chosen layers by ordered ones at full rank; the network computes the same function.

    With sites the components are those of the singular value decomposition, `U = P s^(1/2)`, `V = s^(1/2) Q^T`; with
    statistics those of the truncated fits in the input metric, so that the first b are the best fit of rank b to what
    the layer computes on the data.

    Args:
        model: changed in place and returned; make optimisers afterwards.
        source: its sites, or its statistics.
        only: patterns of the layers. Layers of every kind with a weight of their own can be ordered: linear layers,
            among them the projections of attention, convolutions with stride, padding, dilation and groups, transposed
            ones, and embeddings that are named.

    Raises:
        ValueError: for a pattern that matches nothing, or if nothing can be ordered, with the reason.

    Example:
        >>> import rankwise as rw
        >>> model, x = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, groups=2)), torch.randn(1, 8, 9, 9)
        >>> before = model(x)
        >>> torch.allclose(order_(model, rw.find(model, x))(x), before, atol=1e-5)
        True
    """
    model, format = unwrap(model), SVD()
    sites = source.sites if isinstance(source, Statistics) else source
    fitted = []
    for site in trained_sites(model, sites, only, "order"):
        weight = site_weight(model, site)
        metrics: list[Metric] = identity_metrics(site.groups, site.in_features, weight.device)
        if isinstance(source, Statistics):
            metrics = list(source.metric(site.name, "input").inputs)
        fitted.append((site, format.fit(site, weight, metrics, format.limits(site)), site_bias(model, site)))
    # Building a layer draws initial values, soon overwritten: the caller's random numbers must not depend on it.
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng():
        for site, factors, bias in fitted:
            chain = rebuild(model, site.role, site.names, format, factors.ranks, bias is not None)
            format.fill(chain, factors, bias)
            ordered = Ordered(chain).train(chain.training)
            replace(model, site.names, ordered)
    return model


def ordered_layers(model: nn.Module) -> dict[str, Ordered]:
    """The ordered layers by name; a ValueError if there are none."""
    found = {name: part for name, part in unwrap(model).named_modules() if isinstance(part, Ordered)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no ordered layer; make some with order_")
    return found


def counts(model: nn.Module) -> dict[str, int]:
    """The active components of every ordered layer."""
    return {name: layer.count for name, layer in ordered_layers(model).items()}


@contextmanager
def using(model: nn.Module, ranks: Mapping[str, int]) -> Iterator[nn.Module]:
    """Inside, the named layers use only so many components; others use all active ones.

    Raises:
        ValueError: for a layer that is not ordered, or a rank below 0.

    Example:
        >>> import rankwise as rw
        >>> model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 8)
        >>> with using(order_(model, rw.find(model, x)), {"0": 0}):
        ...     torch.allclose(model(x), model[0].bias)
        True
    """
    layers = ordered_layers(model)
    for name, rank in ranks.items():
        if name not in layers or rank < 0:
            raise ValueError(f"layer {name!r} cannot use {rank} components; ordered layers are {', '.join(layers)}")
    before = {name: layers[name].used for name in ranks}
    for name, rank in ranks.items():
        layers[name].used = rank
    try:
        yield model
    finally:
        for name, used in before.items():
            layers[name].used = used
