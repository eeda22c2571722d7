"""Importance of each neuron of a layer by its weight, and by its activations.

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
    """Sums of absolute weights: `p_c = sum_t |W_tc|`, `q_t = sum_c |W_tc|`."""
    W_GTCQ = grouped(site, site_weight(model, site)).abs()
    return Importance(W_GTCQ.sum((1, 3)), W_GTCQ.sum((2, 3)))


@exclusive
def by_activation(model: nn.Module, stats: Statistics, site: Site) -> Importance:
    """Root mean squares of inputs and outputs: `p_c = sqrt(E x_c^2)`, `q_t = sqrt(W E[x x^T] W^T)_tt`.

    A channel counts with all its taps; outputs are taken without bias.
    """
    W_GTD = grouped(site, site_weight(model, site)).flatten(2)
    inputs, outputs = [], []
    for W_TD, metric in zip(W_GTD, stats[site.name].uncentred().metrics(damping=0.0), strict=True):
        squares_D = metric.dense().diagonal()
        inputs.append(squares_D.unflatten(0, (-1, site.taps)).sum(1).clamp_min(0).sqrt())
        outputs.append((metric.times(W_TD) * W_TD).sum(1).clamp_min(0).sqrt())
    return Importance(torch.stack(inputs), torch.stack(outputs))
