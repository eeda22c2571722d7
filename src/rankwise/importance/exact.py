"""Importance of each neuron of a layer by the loss: exactly, one neuron after the other.

Letters: G groups, T outputs per group, C channels per group, Q taps.

Source: Swaminathan, Garg, Kannan, Andres, "Sparse low rank factorization for deep neural network compression", 2020,
Neurocomputing 398.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formats.slr import Importance
from ..formats.weights import write
from ..network.site import Site
from ..running.exclusive import exclusive
from .labelled import Labelled, Loss, mean
from .truncated import Truncated, truncated


@torch.no_grad()
@exclusive
def by_cost(
    model: nn.Module, site: Site, data: Labelled, ranks: tuple[int, int], loss: Loss = F.cross_entropy
) -> Importance:
    """Exact change of the loss when a neuron loses its further ranks: `p_c = |L(W_k - N_c) - L(W_k)|`.

    `W_k` is the truncated SVD at both ranks together, `N` its components beyond the first rank, `N_c` the part of these
    in neuron c. This takes one pass over the data per neuron.

    Args:
        model: the dense network; a copy is changed.
        site: the layer.
        data: inputs and targets; see `self_labelled`.
        ranks: the rank of all neurons, and the further rank.
        loss: of outputs and targets, mean over samples.

    Raises:
        ValueError: naming the site, if the ranks are not legal; if there are no samples.
    """
    trial = truncated(model, site, ranks)
    first_GTCQ, further_GTCQ = trial.first_GTCQ, trial.further_GTCQ
    base = _mean_loss(trial, data, loss)
    scores = Importance(first_GTCQ.new_zeros(first_GTCQ.shape[:3:2]), first_GTCQ.new_zeros(first_GTCQ.shape[:2]))
    for values, dim in ((scores.inputs_GC, 1), (scores.outputs_GT, 0)):
        for group, neuron in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist():
            cut_GTCQ = further_GTCQ.clone()
            cut_GTCQ[group].select(dim, neuron).zero_()
            write(trial.layer, first_GTCQ + cut_GTCQ)
            values[group, neuron] = (_mean_loss(trial, data, loss) - base).abs()
    return scores


def _mean_loss(trial: Truncated, data: Labelled, loss: Loss) -> Tensor:
    """Mean loss over all samples."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for x, y in data:
        total += len(x) * float(loss(trial.network(x), y))
        count += len(x)
    return mean(total, count)
