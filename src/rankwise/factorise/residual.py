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
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_ADD_FUNCTIONS: tuple[Callable[..., Any], ...] = (operator.add, operator.iadd, torch.add)
_ADD_NAMES = ("add", "add_", "__add__", "__iadd__", "__radd__")
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


def repair(y: Tensor, dense: Any, compressed: Any, scale: Tensor | None) -> Repair | None:
    """What a site's dense output `y` should repair; None where the summands are no tensors that differ.

    Nor is there anything where the scale is of another axis: a batch norm scales the second one of a linear layer's 3-d
    output.
    """
    if not isinstance(dense, Tensor) or not isinstance(compressed, Tensor) or (scale is not None and y.dim() == 3):
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
    layer = model.get_submodule(str(site.target))
    scale, node = None, site
    while len(node.users) == 1:
        (user,) = node.users
        if user.kwargs:
            return None
        if user.op == "call_module":
            module = model.get_submodule(str(user.target))
            if not _passes(module, layer):
                return None
            scale = _times(scale, _scale(module, layer))
            node = user
            continue
        added = user.target in _ADD_FUNCTIONS if user.op == "call_function" else user.target in _ADD_NAMES[:2]
        others = [argument for argument in user.all_input_nodes if argument is not node]
        return Link(others[0], scale) if added and len(user.args) == 2 and len(others) == 1 else None
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
        model: the network; its modules are hooked until `remove`.
        site: qualified name of the site.
        sites: names of all sites; as in the graph, a module that holds none of them is not looked into.
        stop: ends the forward pass.
    """

    def __init__(self, model: nn.Module, site: str, sites: Collection[str], stop: Callable[[], None]) -> None:
        super().__init__()
        self.link: Link | None = None
        self.layer = model.get_submodule(site)
        self.stop = stop
        self.followed: list[Tensor] = []  # the output, then what passed through norms and the like
        self.scale: Tensor | None = None
        self.inside = 0
        closed = [m for n, m in model.named_modules() if n and not any(other.startswith(f"{n}.") for other in sites)]
        self.handles = [module.register_forward_pre_hook(self._entered, with_kwargs=True) for module in closed]
        self.handles += [module.register_forward_hook(self._left) for module in closed]

    def follow(self, y: Tensor) -> None:
        """Start at the site's output."""
        self.followed = [y]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def _entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.inside and self._uses((args, kwargs)):
            straight = len(args) == 1 and args[0] is self.followed[-1] and not kwargs
            if not straight or not _passes(module, self.layer):
                self._end()
        self.inside += 1

    def _left(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.inside -= 1
        if not self.inside and self._uses(args):
            self.followed.append(output)
            self.scale = _times(self.scale, _scale(module, self.layer))

    def _uses(self, values: Any) -> bool:
        return bool(self.followed) and any(
            value is tensor for value in pytree.tree_leaves(values) for tensor in self.followed
        )

    def _end(self) -> None:
        self.followed = []
        self.stop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside or not self._uses((args, kwargs)):
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") in _ADD_NAMES and len(args) == 2 and not kwargs:
            others = [value for value in args if value is not self.followed[-1]]
            if len(others) == 1 and isinstance(others[0], Tensor) and not self._uses(others):
                self.link = Link(others[0].clone(), self.scale)
            self._end()
        result = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):  # sizes and the like are no use
            self._end()
        return result


def _passes(module: nn.Module, layer: nn.Module) -> bool:
    """Whether a module only scales and shifts the outputs of a layer, each one by itself."""
    return type(module).__name__ in _IDENTITIES or _scale(module, layer) is not None


def _scale(module: nn.Module, layer: nn.Module) -> Tensor | None:
    """What a batch norm in eval mode multiplies each output of a layer with; None if it is no such norm."""
    norm = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
    if not isinstance(module, norm) or module.running_var is None:
        return None
    scale = (module.running_var + module.eps).rsqrt()
    return scale if module.weight is None else scale * module.weight


def _times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a * b
