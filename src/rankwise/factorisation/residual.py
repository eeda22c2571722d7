"""Targets that also repair the residual stream.

A site's output may go through a batch norm into an addition, `z = scale * y + shift + s`, where the other summand `s`
of the compressed network already differs from the dense one's. Fitting the site to

    y + (s_dense - s_compressed) / scale

corrects the errors of earlier blocks, which would otherwise add up along the residual stream.

`watch` finds the sites with such an addition; this module finds the addition in the graph.

Letters: G groups, N rows, T outputs per group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ..layers.kinds import spatial_dims

ADD_NAMES = ("add", "add_", "__add__", "__iadd__", "__radd__")
# Place: spatial dimensions of the layer before the norm.
_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Below this part of the largest scale, dividing by a channel's scale would blow its correction up.
_SMALLEST_SCALE = 1e-2
# Error of a batch norm's outputs, relative to the largest.
_ROUNDING = 1e-4


class Link(NamedTuple):
    """The other summand of the addition that a site's output goes into, and the scale before it (None for 1)."""

    other: Any
    scale: Tensor | None


class Repair(NamedTuple):
    """The other summand in both networks, and the scale before the addition."""

    dense: Tensor
    compressed: Tensor
    scale: Tensor | None


def repair(layer: nn.Module, y: Tensor, dense: Any, compressed: Any, scale: Tensor | None) -> Repair | None:
    """What a site's dense output `y` should repair; None where the summands are not two tensors, or still the same.

    None, too, where a batch norm scales another axis than the outputs: the second one of a linear layer's 3-d output.
    """
    other_axis = scale is not None and y.dim() != spatial_dims(layer) + 2
    if not isinstance(dense, Tensor) or not isinstance(compressed, Tensor) or other_axis:
        return None
    return Repair(dense, compressed, scale)


def corrected(y_GNT: Tensor, dense_GNT: Tensor, compressed_GNT: Tensor, scale: Tensor | None) -> Tensor:
    """`y + (s_dense - s_compressed) / scale` by rows; channels with a tiny scale keep `y`."""
    difference_GNT = dense_GNT - compressed_GNT
    if scale is not None:
        usable = scale.abs() > _SMALLEST_SCALE * scale.abs().max()
        inverse = torch.where(usable, 1 / scale, torch.zeros_like(scale)).to(y_GNT.dtype)
        difference_GNT = difference_GNT * inverse.view(len(y_GNT), 1, -1)
    return y_GNT + difference_GNT


def schedule(graph: fx.Graph, model: nn.Module, linked: set[str]) -> tuple[list[fx.Node], dict[str, Link]]:
    """The graph's nodes, with other summands moved before the site that needs them, and the links by site.

    Args:
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
        # `watch` saw a single use. Further users in the graph read the sum that an addition in place left here.
        user = next(iter(node.users))
        if user.op == "call_module":
            scale = times(scale, scale_of(model.get_submodule(str(user.target)), layer))
            node = user
            continue
        others = [argument for argument in user.all_input_nodes if argument is not node]
        return Link(others[0], scale) if len(others) == 1 else None
    return None


def _missing(node: fx.Node, done: set[fx.Node]) -> list[fx.Node]:
    """The node and what it is computed from, without nodes that are done, in order."""
    found: dict[fx.Node, None] = {}

    def add(node: fx.Node) -> None:
        if node not in done and node not in found:
            for argument in node.all_input_nodes:
                add(argument)
            found[node] = None

    add(node)
    return list(found)


def passes(module: nn.Module, layer: nn.Module, x: Tensor, y: Any) -> bool:
    """Whether a module only scaled and shifted each output of a layer: a batch norm, or the identity.

    The values decide, not the class: dropout in eval mode returns its input, and so may a user's own module.

    Args:
        module: the one that was called.
        layer: the one whose outputs it was called with.
        x: its input, as it was before the call.
        y: what it returned.
    """
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return False
    scale = scale_of(module, layer)
    if scale is None:
        return y is x or torch.equal(x, y)
    # What is left after scaling must be one shift per channel: C x all other entries, constant along each row.
    moved = (y - x * scale.view(-1, *[1] * (x.dim() - 2))).transpose(0, 1).flatten(1)
    return bool((moved - moved[:, :1]).abs().max() <= _ROUNDING * y.abs().max())


def scale_of(module: nn.Module, layer: nn.Module) -> Tensor | None:
    """The factors by which a batch norm in eval mode scales a layer's outputs; None for another module."""
    norm = _NORMS[spatial_dims(layer)]
    if not isinstance(module, norm) or module.running_var is None:
        return None
    scale = (module.running_var + module.eps).rsqrt()
    return scale if module.weight is None else scale * module.weight


def times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The product of two scales, where None is 1."""
    return b if a is None else a if b is None else a * b
