"""How much each neuron of a layer matters by its weight, and by what it carries.

Letters: G groups, T outputs per group, C channels per group, Q taps, D = C Q inputs.

Source: Swaminathan, Garg, Kannan, Andres, "Sparse low rank factorization for deep neural network compression", 2020,
Neurocomputing 398.
"""

from __future__ import annotations

import torch
from torch import nn

from ..formats.slr import Importance
from ..formats.weights import grouped, site_weight
from ..network.site import Site
from ..running.exclusive import exclusive
from ..statistics import Statistics


@exclusive
def by_weight(model: nn.Module, site: Site) -> Importance:
    """Sums of absolute weights: `p_c = sum_t |W_tc|`, `q_t = sum_c |W_tc|`.

    Args:
        model: the dense network.
        site: the layer.

    Returns:
        Numbers for every input (or channel) and output of each group.
    """
    W_GTCQ = grouped(site, site_weight(model, site)).abs()
    return Importance(W_GTCQ.sum((1, 3)), W_GTCQ.sum((2, 3)))


@exclusive
def by_activation(model: nn.Module, stats: Statistics, site: Site) -> Importance:
    """Root mean squares of what a layer reads and makes: `p_c = sqrt(E x_c^2)`, `q_t = sqrt(W E[x x^T] W^T)_tt`.

    Args:
        model: the dense network.
        stats: of its inputs.
        site: the layer.

    Returns:
        Numbers for every input (or channel, all its taps together) and output of each group; a bias is left out.
    """
    W_GTD = grouped(site, site_weight(model, site)).flatten(2)
    inputs, outputs = [], []
    for W_TD, metric in zip(W_GTD, stats[site.name].uncentred().metrics(damping=0.0), strict=True):
        squares_D = metric.dense().diagonal()
        inputs.append(squares_D.unflatten(0, (-1, site.taps)).sum(1).clamp_min(0).sqrt())
        outputs.append((metric.times(W_TD) * W_TD).sum(1).clamp_min(0).sqrt())
    return Importance(torch.stack(inputs), torch.stack(outputs))
