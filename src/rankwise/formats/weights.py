"""The weight of a site, output first, whatever layout its layer stores it in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..sites import Site
from .base import kind_of


def site_weight(model: nn.Module, site: Site) -> Tensor:
    """The site's weight, O x I or O x I/G x kh x kw, float64, detached; read through a parametrisation.

    Raises:
        ValueError: naming the site, if the weight is not finite.
    """
    layer = model.get_submodule(site.name)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach().double()
    if not torch.isfinite(weight).all():
        raise ValueError(f"site {site.name!r}: the weight holds NaN or infinity; repair or ignore the site")
    return weight.mT if kind_of(layer) == "conv1d_hf" else weight


def site_bias(model: nn.Module, site: Site) -> Tensor | None:
    """The site's bias, float64, detached."""
    bias = model.get_submodule(site.name).bias
    return bias.detach().double() if isinstance(bias, Tensor) else None
