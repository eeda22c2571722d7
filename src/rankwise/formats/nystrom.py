"""A hidden layer with fewer units: some are kept, and the layer that reads them makes up for the others.

Letters: T outputs, D hidden units, K kept ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.kinds import Role
from ..layers.low_rank import Ranks
from ..linalg.elimination import Elimination, eliminate, leverages, refit
from ..linalg.metric import Metric
from ..network.site import Site
from .base import Factors, Rivals, relative
from .ladders import steps
from .narrower import Narrower

# The units leave in so many parts, one after the other.
PARTS = 192


@dataclass(frozen=True, kw_only=True)
class Nystrom(Narrower):
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

    def curve(
        self, site: Site, weight: Tensor, metrics: Sequence[Metric], step: int, rivals: Rivals | None = None
    ) -> list[tuple[Ranks, float]]:
        (metric,) = metrics
        errors, total = self._path(weight, metric).errors, metric.energy(weight)
        return [((kept,), relative(errors[kept], total)) for kept in steps(site.in_features, step) if kept in errors]

    def predicted(self, site: Site, weight: Tensor, metric: Metric, G_TT: Tensor) -> dict[Ranks, float]:
        # What leaves adds errors that are uncorrelated with those before it, so the losses add up as the errors do.
        losses = self._path(weight, metric, G_TT).errors
        return {(kept,): 0.5 * loss for kept, loss in losses.items() if kept}

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

    def rows(self, factors: Factors, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        kept_K, units = factors.tensors["kept_K"], factors.weight.shape[1]
        places = torch.cat([kept_K + start for start in range(0, len(weight), units)]).to(weight.device)
        return places, weight[places], None if bias is None else bias[places]

    def _path(self, W_TD: Tensor, metric: Metric, G_TT: Tensor | None = None) -> Elimination:
        """The units in the order in which they leave."""
        order_D = leverages(metric).argsort() if self.order == "leverage" else None
        return eliminate(W_TD, metric, max(1, W_TD.shape[1] // PARTS), G_TT, order_D=order_D)
