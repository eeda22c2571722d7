"""Targets that also repair the residual stream.

Where a site's output goes through a batch norm into an addition, `z = scale * y + shift + s`, the other summand `s` of
the compressed network already differs from the dense one's. Fitting the site to

    y + (s_dense - s_compressed) / scale

makes it correct what the blocks before it got wrong, instead of letting errors add up along the residual stream.

Two ways to see the addition: in the graph, or by watching one forward pass.

Letters: G groups, N rows, T outputs per group.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

_ADD_FUNCTIONS: tuple[Callable[..., Any], ...] = (operator.add, operator.iadd, torch.add)
_ADD_NAMES = ("add", "add_", "__add__", "__iadd__", "__radd__")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_IDENTITIES = ("Identity", "Dropout", "Dropout2d", "StochasticDepth", "DropPath")
# A channel that its batch norm scales down more than this against the others carries no usable correction.
_SMALLEST_SCALE = 1e-2


class Link(NamedTuple):
    """The other summand of the addition that a site's output goes into, and the scale on the way (None for 1)."""

    other: Any
    scale: Tensor | None


class Repair(NamedTuple):
    """The other summand in both networks, and the scale on the way to it."""

    dense: Tensor
    compressed: Tensor
    scale: Tensor | None


def corrected(y_GNT: Tensor, dense_GNT: Tensor, compressed_GNT: Tensor, scale: Tensor | None) -> Tensor:
    """`y + (s_dense - s_compressed) / scale`, for rows of them."""
    difference_GNT = dense_GNT - compressed_GNT
    if scale is not None:
        usable = scale.abs() > _SMALLEST_SCALE * scale.abs().max()
        inverse = torch.where(usable, 1 / scale, torch.zeros_like(scale)).to(y_GNT.dtype)
        difference_GNT = difference_GNT * inverse.view(len(y_GNT), 1, -1)
    return y_GNT + difference_GNT


def schedule(graph: fx.Graph, model: nn.Module, sites: set[str]) -> tuple[list[fx.Node], dict[str, Link]]:
    """The graph's nodes, other summands moved before the site they help, and the link of each site that has one.

    A summand that waits for a site still to be fitted, or for the site itself, makes no link.
    """
    nodes = list(graph.nodes)
    links: dict[str, Link] = {}
    for site in [node for node in nodes if node.op == "call_module" and node.target in sites]:
        link = _link(site, model)
        if link is None:
            continue
        done = set(nodes[: nodes.index(site)])
        missing = _missing(link.other, done)
        if any(node is site or (node.op == "call_module" and node.target in sites) for node in missing):
            continue
        for node in missing:
            nodes.remove(node)
        place = nodes.index(site)
        nodes[place:place] = missing
        links[str(site.target)] = link
    return nodes, links


def _link(site: fx.Node, model: nn.Module) -> Link | None:
    scale, node = None, site
    while len(node.users) == 1:
        (user,) = node.users
        if user.op == "call_module":
            module = model.get_submodule(str(user.target))
            if isinstance(module, _NORMS):
                scale = _times(scale, _scale(module))
            elif type(module).__name__ not in _IDENTITIES:
                return None
            node = user
            continue
        added = user.target in _ADD_FUNCTIONS if user.op == "call_function" else user.target in _ADD_NAMES[:2]
        others = [argument for argument in user.all_input_nodes if argument is not node]
        return Link(others[0], scale) if added and len(others) == 1 else None
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


class Watcher(TorchFunctionMode):
    """Follows a site's output through one forward pass up to the addition that it goes into.

    `link` is set when the addition is met; `stop` is called then, or as soon as the output is used otherwise.

    Args:
        model: the network; its batch norms and dropouts are hooked until `remove`.
        stop: ends the forward pass.
    """

    def __init__(self, model: nn.Module, stop: Callable[[], None]) -> None:
        super().__init__()
        self.link: Link | None = None
        self.stop = stop
        self.followed: list[Tensor] = []
        self.scale: Tensor | None = None
        passing = [m for m in model.modules() if isinstance(m, _NORMS) or type(m).__name__ in _IDENTITIES]
        self.handles = [module.register_forward_hook(self._passed) for module in passing]
        self.handles += [module.register_forward_pre_hook(self._entered) for module in passing]
        self.inside = 0

    def follow(self, y: Tensor) -> None:
        """Start at the site's output."""
        self.followed = [y]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def _entered(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.inside += 1

    def _passed(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.inside -= 1
        if args and self._follows(args[0]) and isinstance(output, Tensor):
            self.followed.append(output)
            if isinstance(module, _NORMS):
                self.scale = _times(self.scale, _scale(module))

    def _follows(self, value: Any) -> bool:
        return any(value is tensor for tensor in self.followed)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self.inside or not any(map(self._follows, args)):
            return func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _ADD_NAMES and len(args) == 2 and not kwargs:
            (other,) = [value for value in args if value is not self.followed[-1]] or [None]
            if isinstance(other, Tensor) and not self._follows(other):
                self.link = Link(other.clone(), self.scale)
            self.stop()
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):  # used for something else; sizes and the like are no use
            self.stop()
        return result


def _scale(norm: nn.Module) -> Tensor | None:
    """What a batch norm in eval mode multiplies each channel with."""
    variance, weight = norm.running_var, norm.weight
    if not isinstance(variance, Tensor):
        return None
    scale = (variance + norm.eps).rsqrt()  # type: ignore[operator]
    return scale * weight if isinstance(weight, Tensor) else scale


def _times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a * b
