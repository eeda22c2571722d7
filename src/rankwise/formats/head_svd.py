"""Attention with fewer values in its heads: the layer that reads the heads makes up for the others.

Letters: T outputs, D numbers that the layer reads, K kept ones, G key/value heads, S query heads that share one, H
values of a head, V = G * H values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layers.kinds import Role
from ..layers.low_rank import Ranks
from ..layers.modules import Picked, Spread
from ..linalg.elimination import Elimination, eliminate, refit
from ..linalg.heads import head_axes, turned, turned_metric
from ..linalg.metric import Metric
from ..network.kinds.heads import value_rows
from ..network.site import Heads, Site
from .base import Factors, Rivals, relative
from .ladders import steps
from .narrower import Narrower

# The values leave in so many parts, one after the other.
PARTS = 192


class HeadSVD(Narrower):
    """`V_j = U_j B_g^T`: the values of head g become `B_g^T v`, fewer numbers, and the output projection reads these.

    Attention takes averages of values, so it does not matter whether they are projected before or after. The axes of
    each head come from a singular value decomposition of its value and output projections in the metric
    (`linalg/heads.py`). Of all values of a layer in these axes, those leave first that the others, of all heads,
    replace best (`linalg/elimination.py`); so heads may keep different numbers of values. `U` is the best linear
    prediction of the output from what is left, with the corrected bias.

    The rank is how many numbers the output projection reads, a multiple of the query heads that share a value. The
    attention itself runs on heads of the old size, with zeros for the values that are left out.

    Source: Lin et al., "MoDeGPT: Modular Decomposition for Large Language Model Compression", 2024, arXiv 2408.09632,
    for the axes; the elimination across heads, the refit and the corrected bias are ours.
    """

    name = "head_svd"
    summary = "attention heads with fewer values; the output projection is refitted"
    use = "the value and output projections of attention, when their layers are one site"
    roles = frozenset({Role.HEADS, Role.FEEDER})
    reads = Picked
    gives = Spread

    def curve(
        self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None = None
    ) -> list[tuple[Ranks, float]]:
        (metric,) = metrics
        shared, total = _heads(site).shared, metric.energy(weight)
        errors = _path(site, weight, metric).errors
        values = steps(site.in_features // shared, step)
        return [((shared * kept,), relative(errors[kept], total)) for kept in values if kept in errors]

    def predicted(self, site: Site, weight: Tensor, metric: Metric, G_TT: Tensor) -> dict[Ranks, float]:
        losses, shared = _path(site, weight, metric, G_TT).errors, _heads(site).shared
        return {(shared * kept,): 0.5 * loss for kept, loss in losses.items() if kept}

    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks) -> Factors:
        (kept,) = ranks = self.check(site, ranks)
        (metric,) = metrics
        heads = _heads(site)
        axes_GHH = head_axes(weight, metric, heads.size, heads.shared)
        W_TD, own = turned(weight, axes_GHH), turned_metric(metric, axes_GHH)
        parts_VS, order_V = _inputs(site), _path(site, weight, metric).order_D
        values = order_V[len(order_V) - kept // heads.shared :].sort().values
        kept_K = parts_VS.to(weight.device)[values].flatten().sort().values
        U_TK, dense = refit(W_TD, own, kept_K), torch.zeros_like(weight)
        dense[:, kept_K] = U_TK
        dense = turned(dense, axes_GHH.mT)
        error = relative(metric.energy(weight - dense), metric.energy(weight))
        tensors = {
            "U_1TK": U_TK[None],
            "kept_K": kept_K,
            "values": values,
            "axes_GHH": axes_GHH,
            "rows_GH": value_rows(heads, site.in_features),
        }
        return Factors(format=self.name, ranks=ranks, tensors=tensors, weight=dense, error=error)

    def check(self, site: Site, ranks: Ranks) -> Ranks:
        ranks, shared = super().check(site, ranks), _heads(site).shared
        if ranks[0] % shared:
            raise ValueError(
                f"site {site.name!r}: {self.name} cannot keep {ranks[0]} numbers, for {shared} query heads share each "
                f"value; keep a multiple of {shared}"
            )
        return ranks

    def rows(self, factors: Factors, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        rows_GH, axes_GHH = (factors.tensors[name].to(weight.device) for name in ("rows_GH", "axes_GHH"))
        left = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        left[rows_GH.flatten()] = False
        left[rows_GH.flatten()[factors.tensors["values"].to(weight.device)]] = True

        def made(rows: Tensor) -> Tensor:
            """The rows in the axes of their heads, those that are left."""
            in_axes = torch.einsum("ghk,gh...->gk...", axes_GHH, rows.double()[rows_GH])
            return rows.double().index_copy(0, rows_GH.flatten(), in_axes.flatten(0, 1))[left]

        return left.nonzero().flatten(), made(weight), None if bias is None else made(bias)


def _heads(site: Site) -> Heads:
    assert site.heads is not None
    return site.heads


def _inputs(site: Site) -> Tensor:
    """For each value the inputs of the output projection that are averages of it, V x S."""
    heads = _heads(site)
    inputs = torch.arange(site.in_features).reshape(-1, heads.shared, heads.size)
    return inputs.transpose(1, 2).reshape(-1, heads.shared)


def _path(site: Site, W_TD: Tensor, metric: Metric, G_TT: Tensor | None = None) -> Elimination:
    """The values in the axes of their heads, from all to none."""
    heads, parts_VS = _heads(site), _inputs(site).to(W_TD.device)
    axes_GHH = head_axes(W_TD, metric, heads.size, heads.shared)
    step = max(1, len(parts_VS) // PARTS)
    return eliminate(turned(W_TD, axes_GHH), turned_metric(metric, axes_GHH), step, G_TT, parts_UP=parts_VS)
