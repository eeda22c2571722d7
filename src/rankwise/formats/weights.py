"""The weight of a layer, output first, whatever layout the layer stores it in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..kinds import output_first, site_kind
from ..sites import Site


def read(layer: Any) -> Tensor:
    """The layer's weight, O x I/groups [x kernel]; gradients flow through it."""
    return output_first(site_kind(layer), layer.weight, getattr(layer, "groups", 1))


def write(layer: Any, weight: Tensor) -> None:
    """Copy a weight into the layer: its numbers in the order of O x I/groups [x kernel], in any shape."""
    weight = weight.reshape(read(layer).shape)
    layer.weight.copy_(output_first(site_kind(layer), weight, getattr(layer, "groups", 1)))


def site_weight(model: nn.Module, site: Site) -> Tensor:
    """The site's weight, O x I/groups [x kernel], float64, detached; read through a parametrisation.

    Raises:
        ValueError: naming the site, if the weight is not finite.
    """
    weight = read(model.get_submodule(site.name)).detach().double()
    if not torch.isfinite(weight).all():
        raise ValueError(f"site {site.name!r}: the weight holds NaN or infinity; repair or ignore the site")
    return weight


def site_bias(model: nn.Module, site: Site) -> Tensor | None:
    """The site's bias, float64, detached."""
    bias = getattr(model.get_submodule(site.name), "bias", None)
    return bias.detach().double() if isinstance(bias, Tensor) else None
