"""Sparse low rank: a rank for all neurons, and further ranks between the important ones, in two dense pairs.

Letters: G groups, T outputs per group, C channels per group, Q taps, D = C Q inputs, R rank of a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..linalg.metric import Metric
from ..linalg.selection import fit_selected
from ..linalg.sparse_low_rank import Level
from ..network.site import Site
from . import slr_chain
from .base import Cost, Factors, Format, LowRank, Ranks, Rivals, relative
from .slr_curve import curve
from .slr_levels import are_nested, built, levels_of, paper_ranks
from .weights import grouped, ungrouped


class Importance(NamedTuple):
    """How much each neuron of a layer matters, in any unit: of the inputs (or channels) and outputs of each group."""

    inputs_GC: Tensor
    outputs_GT: Tensor


class SparseLowRank(Format):
    """`W[important] = A [V; Q]`, `W[others] = B V`: a rank for all neurons, further ranks between the important ones.

    `Q` is zero except for the important inputs. With the important outputs first, `A = [U P]` and `B = U'`: one pair
    for all neurons, and a second one, `P Q`, between the important outputs and inputs. Zeros are neither stored nor
    computed: inputs are gathered once, and outputs are put in order once. Ranks are (rank of all, further rank,
    important inputs, important outputs). Either rank may be 0; with a first rank of 0 the other neurons are cut off.

    Unless importance is given, neurons are selected by what they contribute beyond the first pair. The two pairs are
    fitted together.

    Source: Swaminathan, Garg, Kannan, Andres, "Sparse low rank factorization for deep neural network compression",
    2020, Neurocomputing 398.
    """

    name = "slr"
    summary = "a pair for all neurons, and a second one between the important ones, stored without zeros"
    use = "linear layers where many inputs or outputs matter little: dead pixels, units that seldom fire"
    levels: ClassVar[int] = 2

    def __init__(self, importance: Mapping[str, Importance] | None = None, refit: bool = True) -> None:
        """Choose how neurons are selected and factors fitted.

        Args:
            importance: by site name; it alone then selects the neurons.
            refit: fit the factors to the form; else take the truncated SVD with zeros put in, as published.
        """
        self.importance = importance or {}
        self.refit = refit

    def unfit(self, site: Site) -> str | None:
        return None

    def limits(self, site: Site) -> Ranks:
        T, C = site.out_features // site.groups, site.weight_shape[1]
        rank = min(T, site.in_features)
        return (rank, *(rank, C, T) * (self.levels - 1))

    def named_ranks(self, site: Site, settings: Mapping[str, float]) -> Ranks:
        if self.levels != 2 or settings.keys() != {"k", "sr", "rr"} or not float(settings["k"]).is_integer():
            raise ValueError(
                f"site {site.name!r}: {self.name} has no {settings}; slr takes k (a whole number), sr and rr, for "
                f"instance slr:k=16,sr=0.5,rr=0.5; slr3 takes ranks only"
            )
        rank, *_, C, T = self.limits(site)
        if settings["k"] > rank:
            raise ValueError(f"site {site.name!r}: k={settings['k']:g} is above {rank}, the full rank of the layer")
        return paper_ranks(int(settings["k"]), settings["sr"], settings["rr"], C, T)

    def check(self, site: Site, ranks: Ranks) -> Ranks:
        limits, ranks = self.limits(site), tuple(int(rank) for rank in ranks)
        legal = len(ranks) == len(limits) and all(0 <= rank <= limit for rank, limit in zip(ranks, limits, strict=True))
        legal = legal and are_nested(levels_of(ranks, limits[-1], limits[-2]))
        if not legal:
            raise ValueError(
                f"site {site.name!r}: {self.name} cannot have ranks {ranks}; it needs {len(limits)} numbers up to "
                f"{limits}: the rank of all neurons, then {self.levels - 1} times a further rank, important inputs and "
                f"important outputs (at least 1, none more than before); one rank must be above 0"
            )
        return ranks

    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        first = last = 0
        for rank, rows, channels in built(self._levels(site, ranks), site.taps):
            first += site.groups * rank * channels * site.taps
            last += site.groups * rank * rows
        macs = site.rows * first + site.out_positions * last
        return Cost(first + last + site.out_features * bias, macs)

    def indices(self, site: Site, ranks: Ranks) -> int:
        T, C = self.limits(site)[-1], self.limits(site)[-2]
        levels = [level for level in self._levels(site, ranks) if level.rank]
        gathered = max((level.columns for level in levels if level.columns < C), default=0)
        return site.groups * gathered + (0 if all(level.rows == T for level in levels) else site.out_features)

    def curve(
        self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None = None
    ) -> list[tuple[Ranks, float]]:
        return curve(self, site, weight, metrics, step, rivals)

    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks) -> Factors:
        ranks = self.check(site, ranks)
        levels, given = self._levels(site, ranks), self.importance.get(site.name)
        fits, total = [], 0.0
        for group, (W_TCQ, metric) in enumerate(zip(grouped(site, weight), metrics, strict=True)):
            scores = None if given is None else (given.outputs_GT[group], given.inputs_GC[group])
            fits.append(fit_selected(W_TCQ.flatten(1), metric, levels, scores, self.refit))
            total += metric.energy(W_TCQ.flatten(1))
        tensors = {
            "outputs_GT": torch.stack([fit.rows_T for fit in fits]),
            "inputs_GC": torch.stack([fit.channels_C for fit in fits]),
        }
        for level, (rank, _, _) in enumerate(levels):
            if rank:
                tensors[f"U{level}_GTR"] = torch.stack([fit.factors.U[level] for fit in fits])
                tensors[f"V{level}_GRD"] = torch.stack([fit.factors.V[level] for fit in fits])
        dense = ungrouped(site, torch.stack([fit.weight_TD for fit in fits]))
        error = relative(sum(fit.error for fit in fits), total)
        return Factors(format=self.name, ranks=ranks, tensors=tensors, weight=dense, error=error)

    def build(self, layer: nn.Module, ranks: Ranks, bias: bool) -> LowRank:
        return slr_chain.build(type(self)(), layer, ranks, bias)

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        slr_chain.fill(chain, factors, bias)

    def chain_weight(self, chain: LowRank) -> Tensor:
        return slr_chain.dense_weight(chain)

    def _levels(self, site: Site, ranks: Ranks) -> list[Level]:
        """The levels of these ranks in each group, with columns counted in channels."""
        limits = self.limits(site)
        return levels_of(ranks, limits[-1], limits[-2])


class Staircase(SparseLowRank):
    """`W[most important] = A [V; Q; P]`, `W[important] = B [V; Q]`, `W[others] = D V`: one step more than `slr`.

    `Q` is zero except for the important inputs, `P` except for the most important ones. Ranks are (rank of all, further
    rank, important inputs, important outputs, further rank, most important inputs, most important outputs).

    Source: our extension of Swaminathan, Garg, Kannan, Andres, "Sparse low rank factorization for deep neural network
    compression", 2020, Neurocomputing 398.
    """

    name = "slr3"
    summary = "slr with a third pair between the most important neurons: ranks as a staircase"
    use = "as slr, where importance falls off slowly and the layer is large enough for three pairs"
    levels = 3
