"""Two factors by truncated SVD in the metric: Linear pairs, and k x k -> 1 x 1 convolutions.

Letters: O outputs, I inputs, G groups, T outputs per group, D inputs per group, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.cutting import cut
from ..layers.kinds import Role, spatial_dims
from ..layers.low_rank import LowRankLayer
from ..layers.modules import Stacked, TransposedLinear
from ..linalg.metric import Metric
from ..linalg.reduced_rank import balance, energies, energy, multiply, truncate
from ..linalg.two_uses import TwoUses
from ..network.site import Feeder, Site
from ..network.ties import is_table
from .base import Built, Cost, Factors, Format, LowRank, Ranks, Rivals, relative
from .building import chain_of, layers_in, same_tensor_options, set_bias
from .convolution import convolution
from .ladders import steps
from .weights import grouped, read, ungrouped, write


class SVD(Format):
    """`W = U V` with `U = top eigenvectors of W Sigma W^T`: the exact optimum of `||(W - U V) Sigma^(1/2)||_F`.

    A convolution becomes a k x k convolution to R channels, which carries stride, padding and dilation, and a 1 x 1
    convolution. A grouped convolution has one rank for all groups. For a transposed convolution the first layer is
    transposed. An embedding becomes one with R numbers per row, and a linear layer. If a linear head shares the weight
    of an embedding, both share the factors, which are fitted to both uses (`linalg/two_uses.py`).

    Source: Denton et al., "Exploiting Linear Structure Within Convolutional Networks", 2014, arXiv 1404.0736; Zhang,
    Zou, He, Sun, "Accelerating Very Deep Convolutional Networks", 2015, arXiv 1505.06798.
    """

    name = "svd"
    summary = "two factors: Linear pair, or k x k convolution to few channels and a 1 x 1 convolution"
    use = "the first choice for linear layers and 1 x 1 convolutions: an exact optimum, and only two layers to run"

    roles = frozenset({Role.LAYER, Role.TABLE, Role.TIED, Role.JOINT})

    def unfit(self, site: Site) -> str | None:
        return None

    def limits(self, site: Site) -> Ranks:
        return (min(site.out_features // site.groups, site.in_features),)

    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        (rank,) = ranks
        first, last = rank * site.groups * site.in_features, rank * site.out_features
        return Cost(first + last + site.out_features * bias, site.factor_macs(first, last))

    def curve(
        self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None = None
    ) -> list[tuple[Ranks, float]]:
        ranks = steps(self.limits(site)[0], step)
        if site.role is Role.TIED:
            problem = TwoUses(weight, *metrics)
            errors = problem.start_errors()
            return [((rank,), relative(float(errors[rank - 1]), problem.total)) for rank in ranks]
        W_GTD = grouped(site, weight).flatten(2)
        tails: Tensor | float = 0.0
        for W_TD, metric in zip(W_GTD, metrics, strict=True):
            tails = tails + energies(W_TD, metric).flip(0).cumsum(0).flip(0).cpu()
        assert isinstance(tails, Tensor)
        total = float(tails[0])
        tails = torch.cat([tails[1:], tails.new_zeros(1)])  # tails[r - 1]: error at rank r
        return [((rank,), relative(float(tails[rank - 1]), total)) for rank in ranks]

    def predicted(self, site: Site, weight: Tensor, metric: Metric, G_TT: Tensor) -> dict[Ranks, float]:
        squares_T, U_TT = torch.linalg.eigh(metric.inner(weight))
        lost_T = 0.5 * squares_T.clamp_min(0) * ((G_TT @ U_TT) * U_TT).sum(0)
        # Eigenvalues ascend: the sum of the first is what all after a rank lose.
        losses = [0.0, *lost_T.cumsum(0).tolist()]
        return {(rank,): losses[len(lost_T) - rank] for rank in range(1, min(weight.shape) + 1)}

    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks) -> Factors:
        (rank,) = ranks = self.check(site, ranks)
        W_GTCQ = grouped(site, weight)
        pairs: list[tuple[Tensor, Tensor]] = []
        error = total = 0.0
        if site.role is Role.TIED:
            problem = TwoUses(weight, *metrics)
            U_TR, V_RD, error = problem.fit(rank)
            pairs, total = [balance(U_TR, V_RD)], problem.total
        else:
            for W_TD, metric in zip(W_GTCQ.flatten(2), metrics, strict=True):
                U_TR, V_RD, missed = truncate(W_TD, metric, rank)
                pairs.append(balance(U_TR, V_RD))
                error += missed
                total += energy(W_TD, metric)
        U, V = zip(*pairs, strict=True)
        tensors = {"U_GTR": torch.stack(U), "V_GRD": torch.stack(V)}
        dense = ungrouped(site, multiply(tensors["U_GTR"], tensors["V_GRD"]))
        return Factors(format=self.name, ranks=ranks, tensors=tensors, weight=dense, error=relative(error, total))

    def cuts(self, site: Site) -> tuple[int | None, ...]:
        return (None,)

    def orthonormal(self, chain: LowRank) -> tuple[bool, bool]:
        first, last, groups = chain[0], chain[-1], getattr(chain, "groups", 1)
        if isinstance(first, TransposedLinear):  # it shares its factors with the chain of an embedding
            return False, False
        # At full rank the layer on the smaller side is square, so holding it orthonormal loses nothing; the other
        # layer is the core.
        is_wide = read(first)[0].numel() > read(last).shape[0] // groups
        return not is_wide, is_wide

    def output_factor(self, site: Site) -> tuple[str, int] | None:
        return None if site.role is Role.TIED else ("U_GTR", 1)  # rows of a tied embedding are also looked up

    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        (rank,) = ranks
        options = same_tensor_options(layer)
        dense: Any = layer
        if spatial_dims(layer):
            wide, groups = rank * dense.groups, dense.groups
            first = convolution(dense, dense.in_channels, wide, groups, bias=False, **options)
            last = convolution(dense, wide, dense.out_channels, groups, held=(), bias=bias, **options)
        elif isinstance(layer, nn.Embedding):
            first = nn.Embedding(dense.num_embeddings, rank, dense.padding_idx, **options)
            last = nn.Linear(rank, dense.embedding_dim, bias, **options)
        else:
            outputs, inputs = read(layer).shape
            first, last = nn.Linear(inputs, rank, False, **options), nn.Linear(rank, outputs, bias, **options)
        return chain_of(self, ranks, [first, last], layer)

    def build_site(
        self,
        role: Role,
        layers: Mapping[str, nn.Module],
        ranks: Ranks,
        bias: bool,
        feeders: Sequence[Feeder] = (),
    ) -> Built:
        if role is Role.TIED:
            built = self._tied(layers, ranks, bias)
        elif role is Role.JOINT:
            built = self._joint(layers, ranks, bias)
        else:
            return super().build_site(role, layers, ranks, bias)
        for chain in built.chains.values():
            chain.role = role
        return built

    def _tied(self, layers: Mapping[str, nn.Module], ranks: Ranks, bias: bool) -> Built:
        """One chain for the tables and one for the heads, with the same Parameters."""
        tables = [layer for layer in layers.values() if is_table(layer)]
        table = self.build(tables[0], ranks, bias=False)
        head = self._head(next(layer for layer in layers.values() if layer not in tables), table, bias)
        return Built({name: table if layer in tables else head for name, layer in layers.items()}, head)

    def _joint(self, layers: Mapping[str, nn.Module], ranks: Ranks, bias: bool) -> Built:
        """A chain for each layer: all share one first module, and each last module holds the layer's own outputs."""
        (rank,) = ranks
        like = next(iter(layers.values()))
        options = same_tensor_options(like)
        sizes = {name: read(layer).shape for name, layer in layers.items()}
        inputs = sizes[next(iter(layers))][1]
        first = nn.Linear(inputs, rank, False, **options)
        chains: dict[str, LowRank] = {}
        for name, layer in layers.items():
            last = nn.Linear(rank, sizes[name][0], bias, **options)
            chains[name] = chain_of(self, ranks, [first, last], layer)
        stacked = nn.Linear(inputs, sum(outputs for outputs, _ in sizes.values()), bias, device="meta")
        lasts = Stacked([chain[-1] for chain in chains.values()])
        return Built(chains, LowRank(self, ranks, [first, lasts], stacked))

    def _head(self, layer: nn.Module, table: LowRank, bias: bool) -> LowRank:
        """The chain for a dense head that shares the weight of an embedding: it shares the factors of its chain."""
        options = same_tensor_options(layer)
        lookup, linear = layers_in(table)
        (rank,) = table.ranks
        first = TransposedLinear(linear.out_features, rank, **options)
        last = nn.Linear(rank, lookup.num_embeddings, bias, **options)
        first.weight, last.weight = linear.weight, lookup.weight
        return chain_of(self, table.ranks, [first, last], layer)

    def cut(self, chain: LowRank, ranks: Ranks) -> LowRank:
        first, last = layers_in(chain)
        (whole,) = chain.ranks
        if len(ranks) != 1 or not 1 <= ranks[0] <= whole:
            raise ValueError(f"a chain of svd of rank {whole} cannot be cut to {ranks}; name one rank up to {whole}")
        if getattr(chain, "groups", 1) > 1:
            raise ValueError(
                f"a chain of {chain.groups} groups cannot be cut: their columns lie side by side; fit it anew"
            )
        layers = [cut(first, outputs=ranks[0]), cut(last, inputs=ranks[0])]
        smaller = LowRankLayer(self, ranks, layers, chain)
        smaller.kind, smaller.role, smaller.batch_dims = chain.kind, chain.role, chain.batch_dims
        return smaller.train(chain.training)

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        first, last = chain
        with torch.no_grad():
            write(first, factors.tensors["V_GRD"])
            write(last, factors.tensors["U_GTR"])
            set_bias(last, bias)

    def chain_weight(self, chain: LowRank) -> Tensor:
        first, last = map(read, chain)
        V_GRD = first.reshape(getattr(chain, "groups", 1), -1, first[0].numel())
        U_GTR = last.reshape(len(V_GRD), -1, V_GRD.shape[1])
        return (U_GTR @ V_GRD).reshape(last.shape[0], *first.shape[1:])
