"""Weights of layers behind a parametrisation, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ..network.replacing import module_at
from ..network.site import Site


def parametrise_(model: nn.Module, sites: list[Site], make: Callable[[Site, Any], nn.Module]) -> None:
    """Compute the weights of sites by parametrisations.

    Args:
        model: changed in place.
        sites: of the network.
        make: a parametrisation of a site's layer.
    """
    made = [(site, module_at(model, site.name), make(site, module_at(model, site.name))) for site in sites]
    for _, layer, parametrisation in made:
        parametrize.register_parametrization(layer, "weight", parametrisation)


def check_free(model: nn.Module) -> None:
    """Raise a ValueError for a network with a weight that is parametrised already."""
    for name, layer in model.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            raise ValueError(f"the weight of layer {name!r} is parametrised already; remove that first")


def plain_(model: nn.Module, sites: list[Site]) -> None:
    """Give the layers of sites their weights as plain parameters again, in the order in which they had them."""
    for site in sites:
        layer: Any = module_at(model, site.name)
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        if "bias" in layer._parameters:
            layer._parameters["bias"] = layer._parameters.pop("bias")
