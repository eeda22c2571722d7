"""How much each neuron of a layer matters to the loss: exactly, to first order, and to second order.

A neuron is cut off from the components of the truncated SVD beyond the first rank, `W_k - N` for its part of these.

Letters: G groups, T outputs per group, C channels per group, Q taps, D = C Q inputs, R ranks, S samples.

Source: Swaminathan, Garg, Kannan, Andres, "Sparse low rank factorization for deep neural network compression", 2020,
Neurocomputing 398 (the exact criterion); the expansions are our own, the second order by the Gauss-Newton matrix:
Martens, "New insights and perspectives on the natural gradient method", 2014, arXiv 1412.1193.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formats.base import grouped
from ..formats.slr import Importance
from ..formats.weights import site_weight, write
from ..kinds import output_first, spatial_dims
from ..linalg.sparse_low_rank import leading
from ..sites import Site

Labelled = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]

# Labels that are drawn for each sample: their mean square gradient stands for the curvature.
DRAWS = 4


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


def by_curvature(model: nn.Module, site: Site, data: Labelled, ranks: tuple[int, int], *, seed: int = 0) -> Importance:
    """The second-order change of a classifier's loss that `by_cost` measures: `|-<G, N_c> + <N_c, H N_c> / 2|`.

    `H` is the Gauss-Newton matrix of the cross-entropy, from labels that are drawn from the network's own answers: with
    `d` the derivative of a sample's loss along `N_c`, `<N_c, H N_c> = E d^2`. One pass, with a few gradients each.

    Args:
        model: the dense network, whose outputs are logits; a copy of it is changed.
        site: the layer.
        data: inputs and class numbers.
        ranks: the rank of all neurons, and the further rank.
        seed: of the drawn labels.

    Returns:
        Numbers for every input (or channel) and output of each group.

    Raises:
        ValueError: naming the site, if the ranks are not legal for it.
    """
    kept_GTCQ, further_GTCQ = _components(model, site, ranks)
    trial = copy.deepcopy(model).eval().requires_grad_(False)
    layer = trial.get_submodule(site.name)
    beyond = copy.deepcopy(layer)
    write(layer, kept_GTCQ + further_GTCQ)
    write(beyond, further_GTCQ)
    generator, count = torch.Generator().manual_seed(seed), 0
    changes = [torch.zeros(shape, dtype=torch.float64) for shape in (kept_GTCQ.shape[:3:2], kept_GTCQ.shape[:2])]
    for inputs, labels in data:
        count += len(inputs)
        read, made, logits = _seen(trial, layer, inputs)
        drawn = torch.multinomial(logits.softmax(1).cpu(), DRAWS, replacement=True, generator=generator)
        for targets, own in ((labels, True), *((drawn[:, draw].to(labels.device), False) for draw in range(DRAWS))):
            slopes = _slopes(beyond, read, made, logits, targets)
            for change, slope_SN in zip(changes, slopes, strict=True):
                part_N = -slope_SN.sum(0) if own else slope_SN.square().sum(0) / (2 * DRAWS)
                change += part_N.cpu().reshape(change.shape)
    return Importance(*(change.abs() / max(count, 1) for change in changes))


@torch.enable_grad()
def _seen(model: nn.Module, layer: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer reads and makes, and the network's outputs, which depend on the latter."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        caught[:] = given[0].detach(), output.detach().requires_grad_(True)
        return caught[1]

    handle = layer.register_forward_hook(catch)
    try:
        logits = model(inputs)
    finally:
        handle.remove()
    return caught[0], caught[1], logits


@torch.enable_grad()
def _slopes(beyond: nn.Module, read: Tensor, made: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of every sample's loss along the part `N` of each input and output, S x N."""
    loss = F.cross_entropy(logits, targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, made, retain_graph=True)
    x = read.clone().requires_grad_(True)
    y = beyond(x)
    bias = getattr(beyond, "bias", None)
    dim = y.dim() - 1 - spatial_dims(beyond)
    (back,) = torch.autograd.grad(y, x, gradient)
    part = y.detach() if bias is None else y.detach() - bias.reshape(-1, *[1] * spatial_dims(beyond))

    def summed(product: Tensor) -> Tensor:
        return product.movedim(dim, 1).flatten(2).sum(2) if product.dim() > 2 else product

    return summed((back * read).double()), summed((gradient * part).double())


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
