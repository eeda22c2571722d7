"""Laws of fits: never above plain alternating least squares, and weights of a form are recovered.

Letters: D inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import rankwise as rw
from benchmarks import formats_plain
from benchmarks.common import Row
from benchmarks.formats_layers import Layer
from benchmarks.formats_versus import METRICS, about, clock, show
from rankwise.formats import FORMATS, Factors, Ranks
from rankwise.formats.multilinear import Multilinear
from rankwise.formats.shape import Shape
from rankwise.linalg.metric import Dense, Identity, Metric
from rankwise.network.site import Site

# Plain sweeps of more multiplications than this would take hours.
MOST_WORK = 5e9
# Relative squared error of a recovered weight.
RECOVERED = 1e-6
MULTILINEAR = [name for name, format in FORMATS.items() if isinstance(format, Multilinear)]


def plain(layer: Layer, fits: dict[tuple[str, str], Factors]) -> list[Row]:
    """Rows of one layer at the ranks of our fits, where the plain method can be run."""
    rows = []
    for (name, metric), ours in fits.items():
        format, W_TD = FORMATS[name], layer.weight.flatten(1)
        if not isinstance(format, Multilinear):
            continue
        network = format.network(Shape.of_site(layer.site), ours.ranks)
        shapes = [network.shape(letters) for letters in network.factors]
        if formats_plain.work(W_TD, shapes) > MOST_WORK:
            continue
        begin = clock()
        equation = ",".join(network.factors) + "->" + network.equation.kernel
        theirs = formats_plain.best_of(W_TD, layer.metric(metric).dense(), equation, shapes)
        row = about(layer, name, ours.ranks, metric) | {"error": 100 * ours.error, "plain_error": 100 * theirs}
        row |= {"worse_by": 100 * (ours.error / theirs - 1), "plain_seconds": clock() - begin}
        rows.append(row)
        show(row)
    return rows


def planted(names: Sequence[str], count: int) -> list[Row]:
    """Rows of each multilinear format: how many of so many random weights of its form a fit of its ranks recovers."""
    rows = []
    for layer, x in ((nn.Conv2d(12, 16, 3), torch.zeros(1, 12, 5, 5)), (nn.Linear(24, 36), torch.zeros(1, 24))):
        site = rw.find(nn.Sequential(layer), x)["0"]
        for name in names:
            if name not in MULTILINEAR or FORMATS[name].refuses(site):
                continue
            ranks = planted_ranks(FORMATS[name], site)
            for metric in METRICS:
                begin = clock()
                errors = [recovery(name, layer, site, ranks, metric, seed) for seed in range(count)]
                found = sum(error < RECOVERED for error in errors)
                row: Row = {"layer": "x".join(map(str, site.weight_shape)), "format": name}
                row |= {"ranks": ",".join(map(str, ranks)), "metric": metric, "recovered": f"{found} of {count}"}
                row |= {"missed": count - found, "worst": max(errors), "seconds": (clock() - begin) / count}
                rows.append(row)
                show(row)
    return rows


def planted_ranks(format: rw.formats.Format, site: Site) -> Ranks:
    """Ranks of which a weight of the form has no other one: three or four terms, a third of what is legal."""
    limits = format.limits(site)
    return (min(4, *limits),) if len(limits) == 1 else tuple(min(3, max(1, limit // 3)) for limit in limits)


def recovery(name: str, layer: nn.Module, site: Site, ranks: Ranks, metric: str, seed: int) -> float:
    """Relative squared error that a fit leaves of a weight of its form."""
    chain = FORMATS[name].build(layer, ranks, bias=False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in chain.parameters():
        nn.init.normal_(parameter, generator=generator)
    weight = FORMATS[name].chain_weight(chain).double()
    return FORMATS[name].fit(site, weight, [planted_metric(site.in_features, metric)], ranks).error


def planted_metric(D: int, name: str) -> Metric:
    """The weight metric, or that of inputs that are correlated with their neighbours, with variances that fall."""
    if name == "weight":
        return Identity(D)
    rows_ND = torch.randn(4 * D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows_ND = (rows_ND + 0.8 * rows_ND.roll(1, 1) + 0.4) * torch.logspace(0.5, -0.5, D, dtype=torch.float64)
    return Dense(rows_ND.mT @ rows_ND / len(rows_ND))
