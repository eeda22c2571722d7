"""A hidden layer with fewer units: some are kept, and the layer that reads them makes up for the others.

Letters: T outputs, D hidden units, K kept ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.kinds import Role
from ..layers.low_rank import LowRank, Ranks
from ..layers.modules import Kept
from ..linalg.elimination import Elimination, eliminate, leverages, refit
from ..linalg.metric import Metric
from ..network.site import Site
from .base import Built, Cost, Factors, Format, Rivals, relative
from .building import chain_of, layers_in, same_tensor_options, set_bias
from .ladders import steps
from .weights import read, write


class _Whole(LowRank):
    """The chains of all layers of a site, to be filled; the network itself calls them one by one."""

    dense: tuple[Any, ...] = ()  # the layers before, whose rows are copied


# The units leave in so many parts, one after the other.
PARTS = 192


@dataclass(frozen=True, kw_only=True)
class Nystrom(Format):
    """`V = U E_K`: K of the hidden units, and `U = W Sigma_:K Sigma_KK^-1` for the layer that reads them.

    The layers before compute the units K only, so the result is a plain, narrower network: no further layer runs. Which
    units are kept is decided by backward elimination (`linalg/elimination.py`). With the corrected bias, the output is
    the best linear prediction of the dense output from the kept units.

    Source: Lin et al., "MoDeGPT: Modular Decomposition for Large Language Model Compression", 2024, arXiv 2408.09632;
    the elimination and the corrected bias are ours.
    """

    order: str = "elimination"

    name = "nystrom"
    summary = "a hidden layer with fewer units; the layer that reads them is refitted"
    use = "the MLPs of transformers: narrower plain layers, as fast as their size says"
    roles = frozenset({Role.HIDDEN, Role.FEEDER})

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
        return ranks[0] * (1 + sum(feeder.rows for feeder in site.feeders))

    def curve(
        self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None = None
    ) -> list[tuple[Ranks, float]]:
        (metric,) = metrics
        errors, total = self._path(weight, metric).errors, metric.energy(weight)
        return [((kept,), relative(errors[kept], total)) for kept in steps(site.in_features, step) if kept in errors]

    def predicted(self, weight: Tensor, metric: Metric, G_TT: Tensor) -> dict[Ranks, float]:
        # What leaves adds errors that are uncorrelated with those before it, so the losses add up as the errors do.
        losses = self._path(weight, metric, G_TT).errors
        return {(kept,): 0.5 * loss for kept, loss in losses.items() if kept}

    def _path(self, W_TD: Tensor, metric: Metric, G_TT: Tensor | None = None) -> Elimination:
        """The units in the order in which they leave."""
        order_D = leverages(metric).argsort() if self.order == "leverage" else None
        return eliminate(W_TD, metric, max(1, W_TD.shape[1] // PARTS), G_TT, order_D)

    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks) -> Factors:
        (kept,) = ranks = self.check(site, ranks)
        (metric,) = metrics
        order_D = self._path(weight, metric).order_D
        kept_K = order_D[len(order_D) - kept :].sort().values
        U_TK = refit(weight, metric, kept_K)
        dense = torch.zeros_like(weight)
        dense[:, kept_K] = U_TK
        error = relative(metric.energy(weight - dense), metric.energy(weight))
        tensors = {"U_1TK": U_TK[None], "kept_K": kept_K}
        return Factors(format=self.name, ranks=ranks, tensors=tensors, weight=dense, error=error)

    def output_factor(self, site: Site) -> tuple[str, int]:
        return "U_1TK", 1

    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        """The chain of the layer that reads the hidden units."""
        (kept,) = ranks
        outputs, inputs = read(layer).shape
        options = same_tensor_options(layer)
        reader = nn.Linear(kept, outputs, bias, **options)
        return self._chain([Kept(kept, inputs, options["device"]), reader], ranks, layer, Role.HIDDEN)

    def build_site(self, role: Role, layers: Mapping[str, nn.Module], ranks: Ranks, bias: bool) -> Built:
        """The chains of a site; of role "feeder" that of one layer before, whose rank is the numbers that are left."""
        *before, last = layers
        if role is Role.FEEDER:
            chain = self._feeder(layers[last], ranks[0])
            return Built({last: chain}, chain)
        reader = self.build(layers[last], ranks, bias)
        units = read(layers[last]).shape[1]
        feeders = {name: self._feeder(layers[name], ranks[0] * (len(read(layers[name])) // units)) for name in before}
        whole = _Whole(self, ranks, [*feeders.values(), reader], layers[last])
        whole.dense = tuple(layers[name] for name in before)  # a tuple: not a part of the chain
        return Built({**feeders, last: reader}, whole)

    def _feeder(self, layer: nn.Module, kept: int) -> LowRank:
        """The chain of a layer that computes hidden units, one or several numbers for each."""
        outputs, inputs = read(layer).shape
        options = same_tensor_options(layer)
        has_bias = getattr(layer, "bias", None) is not None
        feeder = nn.Linear(inputs, kept, has_bias, **options)
        return self._chain([feeder, Kept(kept, outputs, options["device"])], (kept,), layer, Role.FEEDER)

    def _chain(self, layers: Sequence[nn.Module], ranks: Ranks, like: nn.Module, role: Role) -> LowRank:
        chain = chain_of(self, ranks, layers, like)
        chain.role = role
        return chain

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        assert isinstance(chain, _Whole)
        *feeders, reader = layers_in(chain)
        kept_K, units = factors.tensors["kept_K"], factors.weight.shape[1]
        with torch.no_grad():
            for feeder, dense in zip(feeders, chain.dense, strict=True):
                weight = read(dense)
                places_K = torch.cat([kept_K + start for start in range(0, len(weight), units)]).to(weight.device)
                bias_K = None if getattr(dense, "bias", None) is None else dense.bias[places_K]
                self._set(feeder, places_K, weight[places_K], bias_K)
            self._set(reader, kept_K, factors.tensors["U_1TK"][0], bias)

    def _set(self, chain: LowRank, places_K: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        _places(chain).places.copy_(places_K)
        write(_linear(chain), weight)
        set_bias(_linear(chain), bias)

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


def _places(chain: LowRank) -> Kept:
    return next(layer for layer in chain if isinstance(layer, Kept))


def _linear(chain: LowRank) -> nn.Linear:
    return next(layer for layer in chain if isinstance(layer, nn.Linear))
