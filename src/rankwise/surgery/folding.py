"""Fold batch norms into the layers before them: `gamma (W x + b - mu) / sqrt(var + eps) + beta` is one layer.

Letters: s = gamma / sqrt(var + eps), one number for each output.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import LowRank
from ..formats.convolution import PLAIN, TRANSPOSED
from ..running.copying import copied
from ..running.exclusive import exclusive
from ..running.guards import refuse_unsupported, unwrap
from .tracing import traced, used_once

logger = logging.getLogger("rankwise")
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Dimensions of a layer's outputs -> the norm that fits them.
FITTING = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
LAYERS = (nn.Linear, *PLAIN, *TRANSPOSED)
SHOWN = 4


class Folded(nn.Identity):
    """In place of a folded batch norm.

    In 2 dimensions the channels of `BatchNorm1d` are the last one, in 3 the middle one, which does not hold a linear
    layer's outputs. The input's dimensions are known only at run time, so they are checked there.

    Attributes:
        into: qualified name of the layer that the norm was folded into.
        dims: dimensions of that layer's output.
    """

    def __init__(self, into: str, dims: int) -> None:
        super().__init__()
        self.into = into
        self.dims = dims

    def forward(self, input: Tensor) -> Tensor:
        return _of_dims(input, self.dims, self.into)


@torch.fx.wrap
def _of_dims(x: Tensor, dims: int, into: str) -> Tensor:
    if x.dim() != dims:
        raise ValueError(
            f"the batch norm that was folded into {into!r} works on {dims} dimensions, and got {list(x.shape)}: there "
            f"its channels are not the outputs of that layer; use this network without folding"
        )
    return x


@torch.no_grad()
@exclusive
def folded(model: nn.Module) -> nn.Module:
    """A copy of the network with batch norms folded into the layers before them, as they are in eval mode.

    `y = s (W x + b - mu) + beta = (s W) x + (s (b - mu) + beta)`

    The layer is linear, a convolution, a transposed convolution, or a chain that ends in one, and only its batch norm
    reads its output. Layers and norms that are used more than once, share tensors or have hooks stay, and so do norms
    without running statistics; a log message names the norms that stay. The copy is an ordinary network: it can be
    factorised, saved (`load` folds the fresh model by itself) and exported. It is for inference: it trains differently.

    Returns:
        The copy; in eval mode the same outputs up to rounding.

    Raises:
        ValueError: if the network cannot be traced or copied.

    Example:
        >>> folded(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)))
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): Folded()
        )

    Source: B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, 2018, section 3.2, arXiv:1712.05877.
    """
    model = unwrap(model)
    refuse_unsupported(model)
    made = copied(model)
    graph = traced(made, "use it with its batch norms")
    modules: dict[str, Any] = dict(made.named_modules())
    alone = used_once(made, graph)
    done: set[str] = set()
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], NORMS):
            continue
        name, norm, before = str(node.target), modules[str(node.target)], node.all_input_nodes[0]
        if before.op != "call_module" or len(before.users) > 1:
            continue
        layer = modules[str(before.target)]
        last = _last(layer)
        if last is None or norm.running_mean is None:
            continue
        if _fits(last, norm) and alone(layer) and alone(norm):
            _fold(last, norm)
            made.set_submodule(name, Folded(str(before.target), last.weight.dim()))  # as many as the output has
            done.add(name)
    stay = [name for name, module in modules.items() if isinstance(module, NORMS) and name not in done]
    if stay:
        more = f" and {len(stay) - SHOWN} more" if len(stay) > SHOWN else ""
        logger.info("batch norms that cannot be folded stay: %s%s", ", ".join(stay[:SHOWN]), more)
    return made


def folds_of(model: nn.Module) -> dict[str, str]:
    """Name of every folded batch norm -> the layer that it was folded into."""
    return {name: module.into for name, module in model.named_modules() if isinstance(module, Folded)}


def refolded(fresh: nn.Module, folds: Mapping[str, str]) -> nn.Module:
    """A copy of a fresh model, folded or not, with the batch norms of `folds_of` folded; its values are set later.

    Raises:
        ValueError: naming what the fresh model lacks.
    """
    if folds_of(fresh) == dict(folds):
        return fresh
    if folds_of(fresh):
        raise ValueError("other batch norms of the fresh model are folded; give it as it is built")
    made = copied(fresh)
    modules: dict[str, Any] = dict(made.named_modules())
    for name, into in folds.items():
        norm: Any = modules.get(name)
        layer: Any = modules.get(into)
        if not isinstance(norm, NORMS) or type(layer) not in LAYERS or not _fits(layer, norm):
            raise ValueError(f"the batch norm {name!r} was folded into {into!r}, the fresh model has no such pair")
        _give_bias(layer)
        made.set_submodule(name, Folded(into, layer.weight.dim()))
    return made


def _last(layer: nn.Module) -> Any:
    """The plain layer that makes the outputs, None where there is none."""
    last = layer[-1] if isinstance(layer, LowRank) else layer
    return last if type(last) in LAYERS else None


def _fits(layer: Any, norm: Any) -> bool:
    """Whether the channels of a norm can be the outputs of a layer."""
    return isinstance(norm, FITTING[layer.weight.dim()]) and _outputs(layer) == norm.num_features


def _outputs(layer: Any) -> int:
    outputs: int = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return outputs


def _give_bias(layer: Any) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(_outputs(layer)), requires_grad=layer.weight.requires_grad)


def _fold(layer: Any, norm: Any) -> None:
    """Apply what a norm does in eval mode to the weight and bias of a layer."""
    _give_bias(layer)
    s_O = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        s_O = s_O * norm.weight.double()
    shift_O = s_O * (layer.bias.double() - norm.running_mean.double())
    layer.bias.copy_(shift_O if norm.bias is None else shift_O + norm.bias.double())
    weight = layer.weight.double()
    if isinstance(layer, TRANSPOSED):  # I x O/G [x kernel]
        weight_GIO = weight.reshape(layer.groups, weight.shape[0] // layer.groups, weight.shape[1], -1)
        scaled = (weight_GIO * s_O.reshape(layer.groups, 1, -1, 1)).reshape(weight.shape)
    else:
        scaled = weight * s_O.reshape(-1, *[1] * (weight.dim() - 1))
    layer.weight.copy_(scaled)
