"""Importance of each neuron of a layer by the loss: to first order.

Letters: G groups, T outputs per group, C channels per group, Q taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formats.slr import Importance
from ..formats.weights import grouped
from ..layers.kinds import output_first
from ..network.site import Site
from ..running.exclusive import exclusive
from .labelled import Labelled, Loss, mean
from .truncated import truncated


@exclusive
def by_gradient(
    model: nn.Module, site: Site, data: Labelled, ranks: tuple[int, int], loss: Loss = F.cross_entropy
) -> Importance:
    """The first-order change of the loss that `by_cost` measures, from one pass: `p_c = |<G_c, N_c>|`.

    `N` are the components beyond the first rank, `G = dL/dW` at `W_k`. Args and errors are those of `by_cost`.
    """
    trial = truncated(model, site, ranks)
    weight = trial.layer.weight
    assert isinstance(weight, Tensor)
    weight.requires_grad_(True)
    gradient, count = torch.zeros_like(weight, dtype=torch.float64, requires_grad=False), 0
    for x, y in data:
        with torch.enable_grad():
            (found,) = torch.autograd.grad(loss(trial.network(x), y), weight)
        gradient += len(x) * found
        count += len(x)
    G_GTCQ = grouped(site, output_first(site.kind, mean(gradient, count), site.groups))
    change_GTC = (G_GTCQ * trial.further_GTCQ).sum(3)
    return Importance(change_GTC.sum(1).abs(), change_GTC.sum(2).abs())
