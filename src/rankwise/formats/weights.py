"""The weight of a layer, output first, whatever layout the layer stores it in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..layers.kinds import Role, output_first, site_kind
from ..layers.modules import Stacked, TransposedLinear
from ..linalg.metric import Identity, Metric
from ..network.kinds import kind_of
from ..network.site import Site
from ..network.weights import WeightSource


def read(layer: Any) -> Tensor:
    """The layer's weight, O x I/groups [x kernel]; gradients flow through it."""
    if isinstance(layer, Stacked):
        return torch.cat([read(part) for part in layer])
    return _swapped(layer, layer.weight)


def write(layer: Any, weight: Tensor) -> None:
    """Copy a weight into the layer: its numbers in the order of O x I/groups [x kernel], in any shape."""
    weight = weight.reshape(read(layer).shape)
    if isinstance(layer, Stacked):
        for part, own in zip(layer, weight.split([len(read(part)) for part in layer]), strict=True):
            write(part, own)
        return
    layer.weight.copy_(_swapped(layer, weight))


def _swapped(layer: Any, weight: Tensor) -> Tensor:
    """From the stored layout to output first, or back."""
    if isinstance(layer, TransposedLinear):
        return weight.mT
    return output_first(site_kind(layer), weight, getattr(layer, "groups", 1))


def grouped(site: Site, weight: Tensor) -> Tensor:
    """The weight as G x T x C x Q (groups, outputs and channels per group, taps), float64."""
    kernel = weight.detach().double()
    taps = kernel[0, 0].numel()
    return kernel.reshape(site.groups, kernel.shape[0] // site.groups, kernel.shape[1], taps)


def ungrouped(site: Site, weight_GTCQ: Tensor) -> Tensor:
    """Inverse of `grouped`."""
    return weight_GTCQ.reshape(site.weight_shape)


def site_weight(source: WeightSource, site: Site) -> Tensor:
    """The site's weight, O x I/groups [x kernel], float64, detached; read through a parametrisation.

    Raises:
        ValueError: naming the site, if the weight is not finite or its squares are out of range.
    """
    weight = kind_of(site).weight(source, site).detach().double()
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if not math.isfinite(largest):  # NaN survives the maximum
        raise ValueError(f"site {site.name!r}: the weight holds NaN or infinity; repair or ignore the site")
    if largest and not 1e-152 < largest < 1e150:
        raise ValueError(
            f"site {site.name!r}: the weight is of size {largest:.0e}, and float64 cannot hold its square; scale the "
            f"weight, or ignore the site"
        )
    return weight


def site_bias(source: WeightSource, site: Site) -> Tensor | None:
    """The site's bias (a tied embedding's is its head's), float64, detached."""
    bias = kind_of(site).bias(source, site)
    return None if bias is None else bias.detach().double()


def weight_metrics(site: Site, device: torch.device | str = "cpu") -> list[Metric]:
    """The weight metric of each group; for a tied embedding two, of the head's inputs and of the rows."""
    metrics: list[Metric] = [Identity(site.in_features, device) for _ in range(site.groups)]
    return [*metrics, Identity(site.out_features, device)] if site.role is Role.TIED else metrics
