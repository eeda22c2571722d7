"""Layers of low rank from scratch, in any format, with weights of the right variance.

Sources: He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", 2015, arXiv 1502.01852 (the variance); Ou, Chen, Zhu, Liu,
"Low Rank Optimization for Efficient Deep Learning", 2023, arXiv 2303.13635 (the same variance for every factor).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import Format, LowRank, get_format
from ..layers.kinds import is_convolution, site_kind
from ..network.find import find
from ..network.replacing import module_at
from ..network.sites import Sites
from ..plan import Plan
from ..running.copying import copied
from ..running.guards import unwrap
from ..running.verbs import verb
from ..surgery.rebuild import rebuild

# A sum of products of factors is nearly a power of their scale, so that a few secant steps find it.
STEPS, CLOSE = 50, 1e-6


@verb
def build(
    module: nn.Module, format: str | Format, ranks: int | Sequence[int], *, nonlinearity: Any = "relu"
) -> LowRank:
    """A new factorised layer in the place of a dense one, to be trained from scratch.

        Var(W) = gain^2 / inputs     of the weight that the factors multiply to

    All factors are drawn with one variance, which for a chain of n factors with N paths between an input and an output
    is `(Var(W) / N)^(1/n)`; it is found from the drawn factors, so that the mean square of the weight is right at once.

    Args:
        module: a linear layer, a convolution or another layer that can be factorised; it is not changed, and only its
            sizes and its bias are used.
        format: name of a registered format, or a format.
        ranks: of the format.
        nonlinearity: what follows, as for `torch.nn.init.calculate_gain`.

    Returns:
        The chain, with the layer's dtype, device and bias.

    Raises:
        ValueError: for a module that is no such layer, a format that cannot take it, or ranks that it cannot have.

    Example:
        >>> chain = build(nn.Linear(64, 32), "tt", (4, 4))
        >>> round(float(chain.weight.square().mean()), 4) == round(2 / 64, 4)
        True
    """
    form, kind = get_format(format), site_kind(module)
    if kind is None:
        raise ValueError(
            f"{type(module).__name__} is no layer that can be factorised; give a linear layer or a convolution, or "
            "build_network a whole network"
        )
    (site,) = find(nn.Sequential(module), _example(module, kind)).values()
    if reason := form.refuses(site):
        raise ValueError(f"a chain of {form.name} cannot be built for {module}: {reason}")
    own = form.check(site, (ranks,) if isinstance(ranks, int) else tuple(ranks))
    bias = getattr(module, "bias", None)
    chain = form.build(module, own, bias is not None)
    return initialise_(chain, nn.init.calculate_gain(nonlinearity) ** 2 / site.in_features, bias)


@verb
def build_network(model: nn.Module, plan: Plan, sites: Sites, *, nonlinearity: Any = "relu") -> nn.Module:
    """A copy of a network whose planned layers are new chains, initialised as by `build`.

    For a start from the weights that there are, the spectral initialisation, take `rankwise.factorise` instead.

    Args:
        model: the dense network; it is not changed.
        plan: formats and ranks.
        sites: of the network.
        nonlinearity: as for `build`.

    Raises:
        ValueError: for a plan of another network.
    """
    network = copied(unwrap(model))
    sites.check_structure(network)
    gain = nn.init.calculate_gain(nonlinearity)
    with torch.inference_mode(False), torch.no_grad():
        for row in plan.factorised:
            site = sites[row.site]
            bias = getattr(module_at(network, site.name), "bias", None)
            format = get_format(row.format)
            chain = rebuild(network, site.role, site.names, format, format.check(site, row.ranks), site.has_bias)
            initialise_(chain, gain**2 / site.in_features, bias)
    return network


@torch.no_grad()
def initialise_(chain: LowRank, variance: float, bias: Tensor | None = None) -> LowRank:
    """Draw the factors of a chain so that its weight has mean square `variance`; set its bias.

    A format that computes the bias from several layers starts with zeros.

    Raises:
        ValueError: for a variance that is not above 0.
    """
    if not 0 < variance < math.inf:
        raise ValueError(f"the variance of a weight is {variance}; it must be above 0")
    drawn = {
        name: torch.randn_like(parameter)
        for name, parameter in chain.named_parameters()
        if name.rpartition(".")[2] != "bias"
    }
    parameters = dict(chain.named_parameters())

    def reached(scale: float) -> float:
        for name, value in drawn.items():
            parameters[name].copy_(scale * value)
        return float(chain.weight.double().square().mean())

    # log(mean square) over log(scale) is nearly a line, with the number of factors as half its slope.
    before, at = 0.0, -0.5
    low, high = math.log(reached(1.0)), math.log(reached(math.exp(at)))
    for _ in range(STEPS):
        if abs(high - math.log(variance)) < CLOSE:
            break
        slope = (high - low) / (at - before)
        before, at, low = at, at + (math.log(variance) - high) / slope, high
        high = math.log(reached(math.exp(at)))
    for name, parameter in parameters.items():
        if name not in drawn:
            parameter.copy_(bias) if bias is not None and parameter.shape == bias.shape else parameter.zero_()
    return chain


def _example(layer: Any, kind: str) -> Tensor:
    """An input that the layer takes."""
    weight: Tensor = layer.weight
    if kind == "embedding":
        return torch.zeros(1, 1, dtype=torch.long, device=weight.device)
    if not is_convolution(kind):
        inputs = weight.shape[0] if kind == "conv1d_hf" else layer.in_features
        return weight.new_zeros(1, inputs)
    sizes = [d * (k - 1) + 1 + s for d, k, s in zip(layer.dilation, layer.kernel_size, layer.stride, strict=True)]
    return weight.new_zeros(1, layer.in_channels, *sizes)
