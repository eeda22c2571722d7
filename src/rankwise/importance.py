"""How much each neuron of a layer matters: by its weight, by what it carries, or by what the loss says.

The numbers go to sparse low rank (`rankwise.formats.slr.SparseLowRank(importance=...)`), for which a criterion is only
an order of the neurons; their unit does not matter.

Letters: G groups, T outputs per group, C channels per group, Q taps, D = C Q inputs, R ranks.

Source: Swaminathan, Garg, Kannan, Andres, "Sparse low rank factorization for deep neural network compression", 2020,
Neurocomputing 398 (the three criteria); the first-order one is our own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .formats import FORMATS
from .formats.base import grouped
from .formats.slr import Importance, SparseLowRank
from .formats.weights import site_weight, write
from .kinds import output_first
from .linalg.sparse_low_rank import leading
from .plan import Plan
from .sites import Site, Sites
from .statistics import Statistics

Labelled = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]

CRITERIA = ("weight", "activation", "cost")


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


def by_cost(
    model: nn.Module, site: Site, data: Labelled, ranks: tuple[int, int], loss: Loss = F.cross_entropy
) -> Importance:
    """Exact change of the loss when a neuron loses its further ranks: `|L(W_k less its components) - L(W_k)|`.

    `W_k` is the truncated SVD of the rank of all neurons and the further rank together; a neuron is cut off from the
    components beyond the first rank, one neuron after the other, so this takes a pass over the data for each.

    Args:
        model: the dense network; a copy of it is changed.
        site: the layer.
        data: inputs and targets; see `self_labelled`.
        ranks: the rank of all neurons, and the further rank.
        loss: mean over the samples, of outputs and targets.

    Returns:
        Numbers for every input (or channel) and output of each group.

    Raises:
        ValueError: naming the site, if the ranks are not legal for it.
    """
    kept_GTCQ, further_GTCQ = _components(model, site, ranks)
    trial = copy.deepcopy(model).eval()
    base = _mean_loss(trial, site, kept_GTCQ + further_GTCQ, data, loss)
    scores = Importance(kept_GTCQ.new_zeros(kept_GTCQ.shape[:3:2]), kept_GTCQ.new_zeros(kept_GTCQ.shape[:2]))
    for values, dim in ((scores.inputs_GC, 1), (scores.outputs_GT, 0)):
        for group, neuron in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist():
            cut_GTCQ = further_GTCQ.clone()
            cut_GTCQ[group].select(dim, neuron).zero_()
            values[group, neuron] = abs(_mean_loss(trial, site, kept_GTCQ + cut_GTCQ, data, loss) - base)
    return scores


def by_gradient(
    model: nn.Module, site: Site, data: Labelled, ranks: tuple[int, int], loss: Loss = F.cross_entropy
) -> Importance:
    """The first-order change of the loss that `by_cost` measures, from one pass: `p_c = |<G_c, N_c>|`.

    `N` are the components beyond the first rank, `G = dL/dW` at `W_k`.

    Args:
        model: the dense network; a copy of it is changed.
        site: the layer.
        data: inputs and targets.
        ranks: the rank of all neurons, and the further rank.
        loss: mean over the samples, of outputs and targets.

    Returns:
        Numbers for every input (or channel) and output of each group.

    Raises:
        ValueError: naming the site, if the ranks are not legal for it.
    """
    kept_GTCQ, further_GTCQ = _components(model, site, ranks)
    trial = copy.deepcopy(model).eval()
    layer = trial.get_submodule(site.name)
    with torch.no_grad():
        write(layer, kept_GTCQ + further_GTCQ)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight.requires_grad_(True)
    gradient, count = torch.zeros_like(weight, dtype=torch.float64), 0
    for x, y in data:
        with torch.enable_grad():
            (found,) = torch.autograd.grad(loss(trial(x), y), weight)
        gradient += len(x) * found
        count += len(x)
    G_GTCQ = grouped(site, output_first(site.kind, gradient, site.groups)) / max(count, 1)
    change_GTC = (G_GTCQ * further_GTCQ).sum(3)
    return Importance(change_GTC.sum(1).abs(), change_GTC.sum(2).abs())


def of_plan(
    model: nn.Module,
    plan: Plan,
    source: Statistics | Sites,
    criterion: str,
    data: Labelled | None = None,
) -> dict[str, Importance]:
    """Importance of the neurons of every layer that a plan makes sparse low rank, each in the dense network.

    Args:
        model: the dense network.
        plan: formats and ranks.
        source: statistics for "activation", else only the sites.
        criterion: "weight", "activation", or "cost" (first order, one pass for each layer).
        data: inputs and targets for "cost".

    Returns:
        Importance by site name, for `SparseLowRank(importance=...)` and `Staircase(importance=...)`.

    Raises:
        ValueError: for an unknown criterion, one whose statistics or data are missing, or a plan without such a layer.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}; the criteria are {', '.join(CRITERIA)}")
    rows = [row for row in plan.rows if isinstance(FORMATS.get(row.format), SparseLowRank)]
    if not rows:
        raise ValueError("no layer of the plan is in slr or slr3, so there are no neurons to select; pin one to slr")
    sites = source.sites if isinstance(source, Statistics) else source
    found: dict[str, Importance] = {}
    for row in rows:
        site = sites[row.site]
        if criterion == "weight":
            found[site.name] = by_weight(model, site)
        elif criterion == "activation":
            if not isinstance(source, Statistics):
                raise ValueError('the criterion "activation" needs statistics: pass rankwise.collect(model, data)')
            found[site.name] = by_activation(model, source, site)
        else:
            if data is None:
                raise ValueError('the criterion "cost" needs inputs and targets; self_labelled makes them from inputs')
            found[site.name] = by_gradient(model, site, data, (row.ranks[0], sum(row.ranks[1::3])))
    return found


def self_labelled(model: nn.Module, inputs: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Inputs with the dense network's own first answers as labels, where there are no others.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> self_labelled(model, [torch.tensor([[1.0, 3.0], [5.0, 2.0]])])[0][1].tolist()
        [1, 0]
    """
    trial = copy.deepcopy(model).eval()
    with torch.no_grad():
        return [(x, trial(x).argmax(1)) for x in inputs]


def _components(model: nn.Module, site: Site, ranks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The truncated SVD of a weight: its first components, and further ones, G x T x C x Q each."""
    W_GTCQ = grouped(site, site_weight(model, site))
    first, most = ranks[0], min(W_GTCQ.shape[1], site.in_features)
    if min(ranks) < 0 or not 1 <= sum(ranks) <= most:
        raise ValueError(f"site {site.name!r}: ranks {ranks} must be 0 or more and add up to 1 to {most}")
    kept, further = [], []
    for W_TD in W_GTCQ.flatten(2):
        U_TR, V_RD = leading(W_TD, sum(ranks))
        kept.append(U_TR[:, :first] @ V_RD[:first])
        further.append(U_TR[:, first:] @ V_RD[first:])
    return torch.stack(kept).reshape(W_GTCQ.shape), torch.stack(further).reshape(W_GTCQ.shape)


@torch.no_grad()
def _mean_loss(trial: nn.Module, site: Site, weight_GTCQ: Tensor, data: Labelled, loss: Loss) -> float:
    """Of the network with that weight, over all samples."""
    write(trial.get_submodule(site.name), weight_GTCQ)
    total, count = 0.0, 0
    for x, y in data:
        total += len(x) * float(loss(trial(x), y))
        count += len(x)
    return total / max(count, 1)
