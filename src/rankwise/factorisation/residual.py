"""Targets that also repair the residual stream.

Where a site's output goes through a batch norm into an addition, `z = scale * y + shift + s`, the other summand `s` of
the compressed network already differs from the dense one's. Fitting the site to

    y + (s_dense - s_compressed) / scale

makes it correct what the blocks before it got wrong, instead of letting errors add up along the residual stream.

`watch` says which sites have such an addition; here it is found in the graph.

Letters: G groups, N rows, T outputs per group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ..layers.kinds import spatial_dims

ADD_NAMES = ("add", "add_", "__add__", "__iadd__", "__radd__")
# By the spatial dimensions of the layer before it.
_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# A channel that its batch norm scales down more than this against the others carries no usable correction.
_SMALLEST_SCALE = 1e-2
# Of a batch norm's outputs against the largest.
_ROUNDING = 1e-4


class Link(NamedTuple):
    """The other summand of the addition that a site's output goes into, and the scale on the way (None for 1)."""

    other: Any
    scale: Tensor | None


class Repair(NamedTuple):
    """The other summand in both networks, and the scale on the way to it."""

    dense: Tensor
    compressed: Tensor
    scale: Tensor | None


def repair(layer: nn.Module, y: Tensor, dense: Any, compressed: Any, scale: Tensor | None) -> Repair | None:
    """What a site's dense output `y` should repair; None where the summands are no tensors that differ.

    Nor is there anything where the scale is of another axis: a batch norm scales the second one of a linear layer's 3-d
    output.
    """
    other_axis = scale is not None and y.dim() != spatial_dims(layer) + 2
    if not isinstance(dense, Tensor) or not isinstance(compressed, Tensor) or other_axis:
        return None
    return Repair(dense, compressed, scale)


def corrected(y_GNT: Tensor, dense_GNT: Tensor, compressed_GNT: Tensor, scale: Tensor | None) -> Tensor:
    """`y + (s_dense - s_compressed) / scale`, for rows of them."""
    difference_GNT = dense_GNT - compressed_GNT
    if scale is not None:
        usable = scale.abs() > _SMALLEST_SCALE * scale.abs().max()
        inverse = torch.where(usable, 1 / scale, torch.zeros_like(scale)).to(y_GNT.dtype)
        difference_GNT = difference_GNT * inverse.view(len(y_GNT), 1, -1)
    return y_GNT + difference_GNT


def schedule(graph: fx.Graph, model: nn.Module, linked: set[str]) -> tuple[list[fx.Node], dict[str, Link]]:
    """The graph's nodes, other summands moved before the site they help, and the link of each site that has one.

    Args:
        graph: of the model.
        model: the dense network.
        linked: the sites whose output goes into an addition.
    """
    nodes = list(graph.nodes)
    links: dict[str, Link] = {}
    for site in [node for node in nodes if node.op == "call_module" and node.target in linked]:
        link = _link(site, model)
        if link is None:
            continue
        missing = _missing(link.other, set(nodes[: nodes.index(site)]))
        assert site not in missing
        for node in missing:
            nodes.remove(node)
        place = nodes.index(site)
        nodes[place:place] = missing
        links[str(site.target)] = link
    return nodes, links


def _link(site: fx.Node, model: nn.Module) -> Link | None:
    layer = model.get_submodule(str(site.target))
    scale, node = None, site
    while node.users:
        user = next(iter(node.users))  # further ones, if any, read what an addition in place has made of it
        if user.op == "call_module":
            scale = times(scale, scale_of(model.get_submodule(str(user.target)), layer))
            node = user
            continue
        others = [argument for argument in user.all_input_nodes if argument is not node]
        return Link(others[0], scale) if len(others) == 1 else None
    return None


def _missing(node: fx.Node, done: set[fx.Node]) -> list[fx.Node]:
    """The node and what it is computed from, as far as that is not done yet, in order."""
    found: dict[fx.Node, None] = {}

    def add(node: fx.Node) -> None:
        if node not in done and node not in found:
            for argument in node.all_input_nodes:
                add(argument)
            found[node] = None

    add(node)
    return list(found)


def passes(module: nn.Module, layer: nn.Module, x: Tensor, y: Any) -> bool:
    """Whether a module has only scaled and shifted the outputs of a layer, each one by itself.

    It goes by what the module did, whatever its class: dropout and its like in eval mode give back what they get, and a
    batch norm does what `scale_of` says.

    Args:
        module: that was called.
        layer: whose outputs it was called with.
        x: these, as they were before the call.
        y: what it returned.
    """
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return False
    scale = scale_of(module, layer)
    if scale is None:
        return y is x or torch.equal(x, y)
    moved = (y - x * scale.view(-1, *[1] * (x.dim() - 2))).transpose(0, 1).flatten(1)
    return bool((moved - moved[:, :1]).abs().max() <= _ROUNDING * y.abs().max())


def scale_of(module: nn.Module, layer: nn.Module) -> Tensor | None:
    """What a batch norm in eval mode multiplies each output of a layer with; None if it is no such norm."""
    norm = _NORMS[spatial_dims(layer)]
    if not isinstance(module, norm) or module.running_var is None:
        return None
    scale = (module.running_var + module.eps).rsqrt()
    return scale if module.weight is None else scale * module.weight


def times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a * b
