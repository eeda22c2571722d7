"""Sparse low rank: a rank for all neurons, and further ranks between the important ones, in two dense pairs.

Letters: G groups, T outputs per group, C channels per group, Q taps, D = C Q inputs, R rank of a level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..kinds import spatial_dims
from ..linalg.metric import Metric
from ..linalg.selection import fit_selected
from ..linalg.sparse_low_rank import Level
from ..sites import Site
from .base import (
    Cost,
    Factors,
    Format,
    LowRank,
    Ranks,
    Rivals,
    grouped,
    match_layout,
    relative,
    same_tensor_options,
    set_bias,
    ungrouped,
)
from .convolution import convolution
from .nested import Bands, Branches
from .slr_curve import curve
from .weights import read, write


def paper_ranks(k: int, sr: float, rr: float, inputs: int, outputs: int) -> Ranks:
    """Ranks of `slr` for the published parameters: `r = int(k rr)`, and `floor(sr n)` of the neurons unimportant.

    Args:
        k: rank of the truncated SVD.
        sr: share of the neurons of each side that are unimportant, 0 to 1.
        rr: share of the rank that they keep, 0 to 1.
        inputs, outputs: of the layer, or of each of its groups.

    Raises:
        ValueError: for shares outside of 0 to 1, or a share of unimportant neurons that leaves none.

    Example:
        >>> paper_ranks(6, 0.5, 0.5, 400, 120)
        (3, 3, 200, 60)
    """
    if not 0 <= sr < 1 or not 0 <= rr <= 1:
        raise ValueError(f"sr must be from 0 to below 1 and rr from 0 to 1, not sr={sr} and rr={rr}")
    rank = int(k * rr)
    return rank, k - rank, inputs - int(inputs * sr), outputs - int(outputs * sr)


class Importance(NamedTuple):
    """How much every neuron of a layer matters, in any unit: larger is more important.

    Attributes:
        inputs_GC: of the inputs or channels of each group.
        outputs_GT: of its outputs.
    """

    inputs_GC: Tensor
    outputs_GT: Tensor


class SparseLowRank(Format):
    """`W[important] = A [V; Q]`, `W[others] = B V`: a rank for all neurons, further ranks between the important ones.

    `Q` is zero but for the important inputs. With the important outputs first, `A = [U P]` and `B = U'`, so this is one
    pair for all neurons, and a second one, `P Q`, between the important outputs and inputs. Zeros are neither stored
    nor computed: inputs are gathered once, outputs are put in order once. Ranks are (rank of all, further rank,
    important inputs, important outputs). Either rank may be 0; with a first rank of 0 the other neurons are cut off.

    Neurons are selected by what they contribute to what the first pair leaves, unless their importance is given, and
    the two pairs are fitted together.

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
            importance: of the neurons, by the name of the site; the selection is then theirs alone.
            refit: fit the factors to the form; else they are those of the truncated SVD with zeros put in, as
                published.
        """
        self.importance = importance or {}
        self.refit = refit

    def unfit(self, site: Site) -> str | None:
        return f"{self.name} has no layer that looks rows up; use svd" if site.is_embedding else None

    def limits(self, site: Site) -> Ranks:
        T, C = site.out_features // site.groups, site.weight_shape[1]
        rank = min(T, site.in_features)
        return (rank, *(rank, C, T) * (self.levels - 1))

    def check(self, site: Site, ranks: Ranks) -> Ranks:
        limits, ranks = self.limits(site), tuple(int(rank) for rank in ranks)
        legal = len(ranks) == len(limits) and all(0 <= rank <= limit for rank, limit in zip(ranks, limits, strict=True))
        if legal:
            levels = _levels(ranks, limits[-1], limits[-2])
            legal = any(level.rank for level in levels) and all(
                min(rows, channels) >= 1 and rank <= min(rows, channels * site.taps) for rank, rows, channels in levels
            )
            legal = legal and all(a.rows >= b.rows and a.columns >= b.columns for a, b in pairwise(levels))
        if not legal:
            raise ValueError(
                f"site {site.name!r}: {self.name} cannot have ranks {ranks}; it needs {len(limits)} numbers up to "
                f"{limits}: the rank of all neurons, then {self.levels - 1} times a further rank, important inputs and "
                f"important outputs (at least 1, none more than before), the rank no larger than its block"
            )
        return ranks

    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost:
        first = last = 0
        for rank, rows, channels in self._levels(site, ranks):
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
        options = same_tensor_options(layer)
        dense: Any = layer
        spatial, groups = spatial_dims(layer), getattr(layer, "groups", 1)
        outputs, C = (dense.out_channels, dense.in_channels // groups) if spatial else tuple(read(layer).shape)
        levels = [level for level in _levels(ranks, outputs // groups, C) if level.rank]

        def made(inputs: int, count: int, held: Sequence[int] | None) -> nn.Module:
            if spatial:
                return convolution(dense, groups * inputs, groups * count, groups, held=held, bias=False, **options)
            return nn.Linear(inputs, count, bias=False, **options)

        branches = [made(channels, rank, None) for rank, _, channels in levels]
        bands = list(_bands(levels))
        first = Branches(branches, [level.columns for level in levels], C, groups, spatial, options["device"])
        ends = [made(rank, count, ()) for rank, count in bands]
        ranks_read, counts = [rank for rank, _ in bands], [count for _, count in bands]
        last = Bands(ends, ranks_read, outputs, counts, groups, spatial, bias, **options)
        return match_layout(LowRank(self.name, ranks, [first, last], layer), layer)

    def fill(self, chain: LowRank, factors: Factors, bias: Tensor | None) -> None:
        first, last = _parts(chain)
        tensors = factors.tensors
        inputs_GC, outputs_GT = tensors["inputs_GC"], tensors["outputs_GT"]
        V = [value for name, value in tensors.items() if name.startswith("V")]
        U = [value for name, value in tensors.items() if name.startswith("U")]
        with torch.no_grad():
            if first.inputs is not None:
                offsets = torch.arange(len(inputs_GC), device=inputs_GC.device)[:, None] * inputs_GC.shape[1]
                gathered = len(first.inputs) // len(inputs_GC)
                first.inputs.copy_((inputs_GC + offsets)[:, :gathered].flatten())
            for branch, V_GRD, count in zip(first.levels, V, first.counts, strict=True):
                write(branch, _own_order(V_GRD, inputs_GC) if count == first.channels else V_GRD)
            if last.order is None:
                U = [_own_order(U_GTR.mT, outputs_GT).mT for U_GTR in U]
            else:
                offsets = torch.arange(len(outputs_GT), device=outputs_GT.device)[:, None] * outputs_GT.shape[1]
                last.order.copy_(last.order_of((outputs_GT + offsets).flatten()))
            done = 0
            for band, rank, count in zip(last.bands, last.counts, last.made, strict=True):
                held = [U_GTR[:, done : done + count] for U_GTR in U if U_GTR.shape[1] >= done + count]
                assert sum(part.shape[2] for part in held) == rank
                write(band, torch.cat(held, 2))
                done += count
            set_bias(last, bias)

    def chain_weight(self, chain: LowRank) -> Tensor:
        first, last = _parts(chain)
        groups, C = first.groups, first.channels
        kernel = read(first.levels[0]).shape[2:]
        taps = math.prod(kernel)
        V_GND = []
        for branch, count in zip(first.levels, first.counts, strict=True):
            V_GRCQ = read(branch).reshape(groups, -1, count, taps)
            if count < C:
                places = first.inputs.reshape(groups, -1)[:, :count].long() % C
                index = places[:, None, :, None].expand_as(V_GRCQ)
                V_GRCQ = V_GRCQ.new_zeros(*V_GRCQ.shape[:2], C, V_GRCQ.shape[3]).scatter(2, index, V_GRCQ)
            V_GND.append(V_GRCQ.flatten(2))
        V = torch.cat(V_GND, 1)
        rows = []
        for band, rank in zip(last.bands, last.counts, strict=True):
            U_GtR = read(band).reshape(groups, -1, rank)
            rows.append((U_GtR @ V[:, :rank]).flatten(0, 1))
        rows.append(V.new_zeros(last.outputs - sum(map(len, rows)), V.shape[2]))
        weight = torch.cat(rows)
        weight = weight if last.order is None else weight[last.order.long()]
        return weight.reshape(last.outputs, C, *kernel)

    def _levels(self, site: Site, ranks: Ranks) -> list[Level]:
        """The levels of each group, their columns counted in channels."""
        limits = self.limits(site)
        return _levels(ranks, limits[-1], limits[-2])


class Staircase(SparseLowRank):
    """`W[most important] = A [V; Q; P]`, `W[important] = B [V; Q]`, `W[others] = D V`: one step more than `slr`.

    `Q` is zero but for the important inputs, `P` but for the most important of those. Ranks are (rank of all, further
    rank, important inputs, important outputs, further rank, most important inputs, most important outputs).

    Source: our extension of Swaminathan, Garg, Kannan, Andres, "Sparse low rank factorization for deep neural network
    compression", 2020, Neurocomputing 398.
    """

    name = "slr3"
    summary = "slr with a third pair between the most important neurons: ranks as a staircase"
    use = "as slr, where importance falls off slowly and the layer is large enough for three pairs"
    levels = 3


def _levels(ranks: Ranks, T: int, C: int) -> list[Level]:
    """The levels that ranks stand for, their columns counted in channels."""
    levels = [Level(ranks[0], T, C)]
    for start in range(1, len(ranks), 3):
        rank, channels, rows = ranks[start : start + 3]
        levels.append(Level(rank, rows, channels))
    return levels


def _bands(levels: Sequence[Level]) -> Iterator[tuple[int, int]]:
    """Ranks that a band of outputs reads, and its outputs, the most important first."""
    for count in range(len(levels), 0, -1):
        inner = levels[count].rows if count < len(levels) else 0
        if levels[count - 1].rows > inner:
            yield sum(level.rank for level in levels[:count]), levels[count - 1].rows - inner


def _own_order(M_GRD: Tensor, order_GC: Tensor) -> Tensor:
    """Columns (as many for each channel) put from the sorted order back to their own."""
    M_GRCQ = M_GRD.unflatten(2, (order_GC.shape[1], -1))
    places = order_GC.argsort(1)[:, None, :, None].expand_as(M_GRCQ)
    return M_GRCQ.gather(2, places).flatten(2)


def _parts(chain: LowRank) -> tuple[Any, Any]:
    return chain[0], chain[1]
