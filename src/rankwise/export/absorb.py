"""Absorb the index operations of sparse low rank into the layers beside it, where that is legal.

A layer in `slr` reads `x[inputs]` and makes `z[order]`. The layer before it can make its outputs in the order in which
they are read, and the layer after it can read them in the order in which they are made, if nothing in between tells one
neuron from another. The network computes the same; its weights are stored in another order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..formats import LowRank
from ..layers.nested import Bands, Branches
from ..running.copying import copied
from ..running.exclusive import exclusive
from ..running.guards import refuse_unsupported, unwrap
from ..surgery.tracing import traced, used_once

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ALIKE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.Sigmoid, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
FUNCTIONS = (F.relu, F.gelu, F.silu, F.leaky_relu, torch.relu, torch.tanh, torch.sigmoid, F.tanh, F.sigmoid, F.dropout)
METHODS = ("relu", "tanh", "sigmoid")


@torch.no_grad()
@exclusive
def absorbed(model: nn.Module) -> nn.Module:
    """A copy of the network with fewer index operations in its `slr` and `slr3` layers, for export.

    This is legal between two layers that are each used once, with only element-wise activations, dropout, pooling and
    batch norm of convolutions in between; grouped convolutions keep their indices. The copy cannot be saved as an
    artifact: `save` the network itself.

    Args:
        model: with factorised layers.

    Returns:
        The copy, with the same outputs up to rounding.

    Raises:
        ValueError: if the network cannot be traced or copied.

    Example:
        >>> absorbed(nn.Sequential(nn.Linear(4, 2)))
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    model = unwrap(model)
    refuse_unsupported(model)
    made = copied(model)
    graph = traced(made, "export it with its indices")
    modules = dict(made.named_modules())
    alone = used_once(made, graph)
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        between, reader = _to_reader(node, modules)
        if reader is None:
            continue
        layers = [modules[str(node.target)], *between, modules[str(reader.target)]]
        # modules without tensors, such as activations, may be called elsewhere too
        if not all(alone(layer) for layer in (layers[0], layers[-1], *_norms(between))):
            continue
        first, last = _end(layers[0], makes=True), _end(layers[-1], makes=False)
        if first is None or last is None or _spatial(first) != _spatial(last):
            continue
        if _spatial(first) == 0 and any(isinstance(layer, (*NORMS, *POOLS)) for layer in between):
            continue
        order = _wanted(first, last)
        if order is not None:
            _make(first, order)
            for norm in _norms(between):
                _permute(norm, order)
            _read(last, order)
    return made


def _to_reader(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[list[nn.Module], fx.Node | None]:
    """The modules between a node and the one layer that reads it, and that layer; None if there is no such layer."""
    between: list[nn.Module] = []
    while len(node.users) == 1:
        (node,) = node.users
        if len(node.all_input_nodes) != 1:
            break
        if node.op == "call_module":
            module = modules[str(node.target)]
            if not isinstance(module, (*ALIKE, *NORMS, *POOLS)):
                return between, node
            between.append(module)
        elif not (node.op == "call_function" and node.target in FUNCTIONS) and not (
            node.op == "call_method" and node.target in METHODS
        ):
            break
    return between, None


def _norms(layers: list[nn.Module]) -> list[nn.Module]:
    return [layer for layer in layers if isinstance(layer, NORMS)]


def _end(layer: Any, makes: bool) -> nn.Module | None:
    """The part of a layer that makes its outputs, or reads its inputs; None if its neurons cannot be reordered."""
    if isinstance(layer, LowRank):
        layer = layer[-1 if makes else 0]
    known = isinstance(layer, (Branches, Bands)) or type(layer) in PLAIN
    return layer if known and getattr(layer, "groups", 1) == 1 else None


def _spatial(layer: Any) -> int:
    """Dimensions after the channels; 0 if features come last."""
    if isinstance(layer, (Branches, Bands)):
        return layer.spatial
    return 0 if isinstance(layer, nn.Linear) else int(layer.weight.dim()) - 2


def _wanted(first: nn.Module, last: nn.Module) -> Tensor | None:
    """The order that saves an index operation: the one in which neurons are read, else the one they are made in."""
    if isinstance(last, Branches) and last.inputs is not None:
        chosen = last.inputs.long()
        rest = torch.ones(last.channels, dtype=torch.bool, device=chosen.device)
        rest[chosen] = False
        return torch.cat([chosen, rest.nonzero().flatten()])
    if isinstance(first, Bands) and first.order is not None:
        return first.order.long().argsort()
    return None


def _make(layer: Any, order: Tensor) -> None:
    """Let a layer make its outputs in another order."""
    if not isinstance(layer, Bands):
        _permute(layer, order)
        return
    if layer.order is None:
        _permute(layer.bands[0], order)
    else:
        layer.order = layer.order[order]
        layer.order = None if _is_sorted(layer.order) else layer.order
    if layer.bias is not None:
        layer.bias.copy_(layer.bias[order])


def _read(layer: Any, order: Tensor) -> None:
    """Let a layer read inputs in another order."""
    if not isinstance(layer, Branches):
        layer.weight.copy_(layer.weight[:, order])
        return
    branches: Any = layer.levels
    for branch, count in zip(branches, layer.counts, strict=True):
        if count == layer.channels:
            branch.weight.copy_(branch.weight[:, order])
    if layer.inputs is not None:
        layer.inputs = order.argsort()[layer.inputs.long()].int()
        layer.inputs = None if _is_sorted(layer.inputs) else layer.inputs


def _permute(layer: nn.Module, order: Tensor) -> None:
    """Reorder every tensor that has one entry per output."""
    for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
        if tensor.dim():
            tensor.copy_(tensor[order])


def _is_sorted(indices: Tensor) -> bool:
    return torch.equal(indices.long(), torch.arange(len(indices), device=indices.device))
