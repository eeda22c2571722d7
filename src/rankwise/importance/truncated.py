"""The start of all loss criteria: a layer's truncated SVD, with components beyond the first rank kept apart.

Letters: G groups, T outputs per group, C channels per group, Q taps, D = C Q inputs, R ranks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from ..formats.weights import grouped, site_weight, write
from ..linalg.splitting import leading
from ..network.site import Site


@dataclass(frozen=True, kw_only=True)
class Truncated:
    """A copy of a network to try weights of one layer in; it starts with the truncated SVD.

    Attributes:
        network: the copy, in evaluation mode.
        layer: of the copy.
        first_GTCQ: components up to the first rank.
        further_GTCQ: components beyond it, from which neurons are cut off.
    """

    network: nn.Module
    layer: nn.Module
    first_GTCQ: Tensor
    further_GTCQ: Tensor


def truncated(model: nn.Module, site: Site, ranks: tuple[int, int]) -> Truncated:
    """Put the truncated SVD at both ranks together (of all neurons, and further) into a copy of a network.

    Raises:
        ValueError: naming the site, if the ranks are not legal.
    """
    W_GTCQ = grouped(site, site_weight(model, site))
    first, most = ranks[0], min(W_GTCQ.shape[1], site.in_features)
    if min(ranks) < 0 or not 1 <= sum(ranks) <= most:
        raise ValueError(f"site {site.name!r}: ranks {ranks} must be 0 or more and add up to 1 to {most}")
    pairs = [leading(W_TD, sum(ranks)) for W_TD in W_GTCQ.flatten(2)]
    first_GTD = torch.stack([U_TR[:, :first] @ V_RD[:first] for U_TR, V_RD in pairs])
    further_GTD = torch.stack([U_TR[:, first:] @ V_RD[first:] for U_TR, V_RD in pairs])
    network = copy.deepcopy(model).eval().requires_grad_(False)
    layer = network.get_submodule(site.name)
    _make_plain(layer)
    with torch.no_grad():
        write(layer, first_GTD + further_GTD)
    first_GTCQ, further_GTCQ = (part.reshape(W_GTCQ.shape) for part in (first_GTD, further_GTD))
    return Truncated(network=network, layer=layer, first_GTCQ=first_GTCQ, further_GTCQ=further_GTCQ)


def _make_plain(layer: nn.Module) -> None:
    """Turn the tensors of a parametrised layer into plain parameters, so that they can be written to.

    `remove_parametrizations` would change the class, which the copy shares with the user's layer.
    """
    if not is_parametrized(layer):
        return
    tensors = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}  # type: ignore[union-attr]
    del layer.parametrizations
    layer.__class__ = type_before_parametrizations(layer)
    for name, tensor in tensors.items():
        layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
