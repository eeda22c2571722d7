"""Predicted errors of sparse low rank: for a few shapes of the important block, all its ranks from one spectrum.

What the truncated SVD of the first rank leaves is `R`; the best pair between the important neurons then explains the
leading eigenvalues of the block of `R R^T`. The fit starts from there, so it does no worse.

Letters: G groups, T outputs per group, C channels per group, D inputs per group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product

import torch
from torch import Tensor

from ..linalg.metric import Metric
from ..linalg.sorting import Sorted, descending, shares
from ..linalg.splitting import leading
from ..linalg.symmetric import eigenvalues
from ..network.site import Site
from .base import Format, Ranks, Rivals, relative
from .ladders import steps
from .weights import grouped

BlockSize = tuple[int, int]  # important outputs and inputs

# Sizes of the important block that curves try, as a share of the neurons of a side.
SHARES = (0.25, 0.5, 0.75, 1.0)
# First ranks and further ranks that curves try. Each first rank costs one spectrum for every shape.
FIRST_RANKS, FURTHER_RANKS = 8, 16
# A shape is dropped if all its errors are this many times those of other formats at no greater cost.
BEATEN = 1.25


def curve(
    format: Format, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None
) -> list[tuple[Ranks, float]]:
    """See `Format.curve`; options that another one matches in both costs and error are left out."""
    limits = format.limits(site)
    T, C = limits[-1], limits[-2]
    Z_GTD, total = [], 0.0
    for W_TCQ, metric in zip(grouped(site, weight), metrics, strict=True):
        W_TD = W_TCQ.flatten(1)
        Z_GTD.append(Sorted(W_TD, metric, *map(descending, shares(W_TD, metric, site.taps))).Z_TD)
        total += metric.energy(W_TD)
    whole = [leading(Z_TD, limits[0]) for Z_TD in Z_GTD]
    firsts = [0, *steps(limits[0], step, FIRST_RANKS)]
    middle = len(firsts) // 2
    firsts = firsts[middle::-1] + firsts[middle + 1 :]  # the middle first: a beaten shape stops there
    found: dict[Ranks, float] = {limits: 0.0}
    for shapes in staircases(T, C, step, len(limits) // 3):
        beaten = None if rivals is not None else False
        for first in firsts:
            rest = [Z - U[:, :first] @ V[:first] for Z, (U, V) in zip(Z_GTD, whole, strict=True)]
            options = {
                (first, *ranks): relative(error, total)
                for ranks, error in _further(rest, shapes, site.taps, step)
                if format.saves(site, (first, *ranks))
            }
            if beaten is None and rivals is not None and options:
                costs = [format.cost(site, ranks, False) for ranks in options]
                beaten = all(e > BEATEN * rivals(cost) for e, cost in zip(options.values(), costs, strict=True))
            if beaten:
                break
            found.update(options)
    return _undominated(format, site, found)


def staircases(T: int, C: int, step: int, count: int) -> Iterator[tuple[BlockSize, ...]]:
    """Shapes of nested blocks, each smaller than the last; for one block all pairs of shares except the whole."""

    def part(limit: int, share: float) -> int:
        return limit if share == 1 else min(limit, max(1, round(share * limit / step)) * step)

    shapes = list(dict.fromkeys((part(T, a), part(C, b)) for a, b in product(SHARES, repeat=2)))
    shapes.remove((T, C))
    if count == 1:
        yield from ((shape,) for shape in shapes)
        return
    balanced = [(part(T, share), part(C, share)) for share in reversed(SHARES[:-1])]
    yield from pairwise(dict.fromkeys(balanced))


def _further(
    rest: Sequence[Tensor], shapes: Sequence[BlockSize], taps: int, step: int
) -> Iterator[tuple[Ranks, float]]:
    """Ranks and sizes of the blocks, and the squared error that they leave."""
    (rows, channels), *inner = shapes
    blocks = [R_TD[:rows, : channels * taps] for R_TD in rest]
    most = min(blocks[0].shape)
    energy = sum(float(R_TD.square().sum()) for R_TD in rest)
    if inner:
        factors = [leading(block, most) for block in blocks]
        for rank in steps(most, step, FIRST_RANKS):
            left = [R_TD.clone() for R_TD in rest]
            for R_TD, (U, V) in zip(left, factors, strict=True):
                R_TD[:rows, : channels * taps] -= U[:, :rank] @ V[:rank]
            for ranks, error in _further(left, inner, taps, step):
                yield (rank, channels, rows, *ranks), error
        return
    explained = torch.stack([_spectrum(block) for block in blocks]).sum(0).cumsum(0).tolist()
    for rank in steps(most, step, FURTHER_RANKS):
        yield (rank, channels, rows), max(energy - explained[rank - 1], 0.0)


def _spectrum(block_td: Tensor) -> Tensor:
    """Squared singular values."""
    t, d = block_td.shape
    return eigenvalues(block_td @ block_td.mT if t <= d else block_td.mT @ block_td).cpu()


def _undominated(format: Format, site: Site, found: dict[Ranks, float]) -> list[tuple[Ranks, float]]:
    """Options that no other one matches in both costs and error, so that errors fall as costs rise."""
    costs = [format.cost(site, ranks, False) for ranks in found]
    _, macs = (torch.tensor(values) for values in zip(*costs, strict=True))
    errors = torch.tensor(list(found.values()), dtype=torch.float64)
    kept: list[int] = []
    for option in sorted(range(len(costs)), key=lambda at: (costs[at], errors[at])):
        others = torch.tensor(kept, dtype=torch.long)
        if not ((macs[others] <= macs[option]) & (errors[others] <= errors[option])).any():
            kept.append(option)
    ranks = list(found)
    return [(ranks[option], float(errors[option])) for option in kept]
