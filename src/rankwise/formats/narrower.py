"""Layers that compute fewer numbers, and the layer that reads them, refitted to make up for the others.

Letters: T outputs, D numbers that the layer reads, K kept ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..layers.kinds import FED, Role
from ..layers.low_rank import LowRank, Ranks
from ..layers.modules import Kept
from ..network.site import Feeder, Site
from .base import Built, Cost, Factors, Format
from .building import chain_of, layers_in, same_tensor_options, set_bias
from .weights import read, write


class Whole(LowRank):
    """The chains of all layers of a site, to be filled; the network itself calls them one by one."""

    dense: tuple[Any, ...] = ()  # the layers before


class Narrower(Format):
    """Of the numbers that a layer reads some are kept, and the layers that compute them compute no others.

    Attributes:
        reads, gives: parts at the start of the chain that reads the numbers, and at the end of one that computes them.
    """

    reads: ClassVar[type[Kept]] = Kept
    gives: ClassVar[type[Kept]] = Kept

    def unfit(self, site: Site) -> str | None:
        return None

    def limits(self, site: Site) -> Ranks:
        return (site.in_features,)

    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        (kept,) = ranks
        before, biases = site.fed(kept)
        after = kept * site.out_features
        return Cost(before + biases + after + site.out_features * bias, site.rows * (before + after))

    def indices(self, site: Site, ranks: Ranks) -> int:
        return ranks[0] + sum(feeder.left(ranks[0]) for feeder in site.feeders)

    def output_factor(self, site: Site) -> tuple[str, int]:
        return "U_1TK", 1

    @abstractmethod
    def rows(self, factors: Factors, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of a layer before: places of the rows that are left, their weights, and their biases."""

    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        """The chain of the layer that reads the numbers."""
        (kept,) = ranks
        outputs, inputs = read(layer).shape
        options = same_tensor_options(layer)
        reader = nn.Linear(kept, outputs, bias, **options)
        chain = chain_of(self, ranks, [self.reads(kept, inputs, options["device"]), reader], layer)
        (chain.role,) = self.roles & FED
        return chain

    def build_site(
        self,
        role: Role,
        layers: Mapping[str, nn.Module],
        ranks: Ranks,
        bias: bool,
        feeders: Sequence[Feeder] = (),
    ) -> Built:
        """The chains of a site; of role "feeder" that of one layer before, whose rank is the rows that are left."""
        *before, last = layers
        if role is Role.FEEDER:
            chain = self._feeder(layers[last], ranks[0])
            return Built({last: chain}, chain)
        reader = self.build(layers[last], ranks, bias)
        made = {
            name: self._feeder(layers[name], feeder.left(ranks[0]))
            for name, feeder in zip(before, feeders, strict=True)
        }
        whole = Whole(self, ranks, [*made.values(), reader], layers[last])
        whole.dense = tuple(layers[name] for name in before)  # a tuple: not a part of the chain
        return Built({**made, last: reader}, whole)

    def _feeder(self, layer: nn.Module, left: int) -> LowRank:
        """The chain of a layer that computes the numbers."""
        outputs, inputs = read(layer).shape
        options = same_tensor_options(layer)
        has_bias = getattr(layer, "bias", None) is not None
        linear = nn.Linear(inputs, left, has_bias, **options)
        chain = chain_of(self, (left,), [linear, self.gives(left, outputs, options["device"])], layer)
        chain.role = Role.FEEDER
        return chain

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        assert isinstance(chain, Whole)
        *feeders, reader = layers_in(chain)
        with torch.no_grad():
            for feeder, dense in zip(feeders, chain.dense, strict=True):
                _set(feeder, *self.rows(factors, read(dense), getattr(dense, "bias", None)))
            _set(reader, factors.tensors["kept_K"], factors.tensors["U_1TK"][0], bias)

    def chain_weight(self, chain: LowRank) -> Tensor:
        places, weight = _places(chain), read(_linear(chain))
        if isinstance(chain[0], Kept):
            return weight.new_zeros(len(weight), places.of).index_copy(1, places.places.long(), weight)
        return weight.new_zeros(places.of, weight.shape[1]).index_copy(0, places.places.long(), weight)

    def chain_bias(self, chain: LowRank) -> Tensor | None:
        bias: Tensor | None = _linear(chain).bias
        if bias is None or isinstance(chain[0], Kept):
            return bias
        places = _places(chain)
        return bias.new_zeros(places.of).index_copy(0, places.places.long(), bias)


def _set(chain: LowRank, places: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    _places(chain).places.copy_(places)
    write(_linear(chain), weight)
    set_bias(_linear(chain), bias)


def _places(chain: LowRank) -> Kept:
    return next(layer for layer in chain if isinstance(layer, Kept))


def _linear(chain: LowRank) -> nn.Linear:
    return next(layer for layer in chain if isinstance(layer, nn.Linear))
