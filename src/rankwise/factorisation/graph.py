"""Run the dense and the compressed network side by side, node by node, each of them once.

The graph from `torch.fx` is only a schedule: every module without a site is one node, and nodes call the modules of the
two networks. Between two sites a whole segment runs batch by batch, and only activations that a later segment reads are
kept. A value on which the two networks still agree is computed once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..layers.low_rank import LowRank
from ..layers.modules import Kept
from ..running.attributes import Attributes
from ..running.batches import Batches
from ..running.calling import DataError, apart, call
from ..running.exclusive import own_thread
from ..running.padding import Padding
from ..running.randomness import Randomness
from ..surgery.tracing import OwnTracer
from .residual import Link, Repair, repair, schedule
from .spill import ActivationStore

# Prefix of the attributes in which tracing stores tensors that are not inputs; the graph reads them.
_CONSTANTS = "_tensor_constant"
_DRAWS = "draws random numbers"  # key of a node's meta data, set when the graph is checked
SAME = object()  # in place of a compressed value that still equals the dense one


class OtherOptionsError(ValueError):
    """A batch calls the network with other options than the first one, for which it was traced."""


class Visitor(Protocol):
    """What happens at each site, with either engine."""

    def observe(
        self, site: str, batch: int, x: Tensor | None, y: Tensor | None, repair: Repair | None, real: Tensor | None
    ) -> None:
        """Take a batch's input in the compressed network and output in the dense one, None where it never got there.

        `real` marks the rows that are not padding, samples x positions.
        """

    def is_done(self, site: str) -> bool:
        """Whether its chain was fitted before, so that nothing has to be observed."""

    def finish(self, site: str) -> None:
        """After all batches: fit, and put the chain into the compressed network."""

    def differs(self, module: str) -> bool:
        """Whether a module of the compressed network holds chains already."""


class _Tracer(OwnTracer):
    """Traces into modules that hold a site; all others are one node each."""

    def __init__(self, open_modules: set[str]) -> None:
        super().__init__()
        self.open_modules = open_modules

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.open_modules


def trace(model: nn.Module, example: Any, sites: Iterable[str], linked: set[str]) -> fx.Graph | str:
    """The model's graph, checked on an example, or the reason why there is none.

    Args:
        model: in eval mode, under no_grad.
        sites: qualified names of the modules that must be nodes.
        linked: the sites whose output goes into an addition.
    """
    sites = set(sites)
    parts = [name.split(".") for name in sites]
    open_modules = {".".join(each[:depth]) for each in parts for depth in range(len(each))}
    try:
        arguments = bind(model, example)
        # Options are fixed while tracing, so that a forward may branch on them; `_arguments` refuses other ones later.
        concrete = {name: value for name, value in arguments.items() if not _has_tensor(value)}
        randomness = Randomness(model)
        state = randomness.state()
        attributes = Attributes(model)
        try:
            graph = _Tracer(open_modules).trace(model, concrete_args=concrete or None)
        finally:
            attributes.restore(but=_CONSTANTS)  # a forward that keeps activations as attributes has kept proxies
        if randomness.drawn_since(state):
            return "random numbers that do not depend on the batch would be constants of the graph"
        _drop_constants(graph, arguments.keys() - concrete.keys())
        called = [node.target for node in graph.nodes if node.op == "call_module" and node.target in sites]
        if sorted(called) != sorted(sites):
            return "a site is not called exactly once in the traced graph"
        expected = _expected(model, example, randomness)
        randomness.seed(1)
        got = pytree.tree_leaves(_run_dense(model, schedule(graph, model, linked)[0], arguments, randomness))
    except Exception as error:  # tracing runs the user's forward on proxies: anything may come out of it
        return f"{type(error).__name__}: {error}"
    if len(expected) != len(got) or not all(_close(a, b) for a, b in zip(expected, got, strict=True)):
        return "the traced graph computes something else"
    return graph


def _expected(model: nn.Module, example: Any, randomness: Randomness) -> list[Any]:
    """The network's outputs: of the second call if the first changed attributes.

    A forward that caches (a mask, a position table) may take another path the second time; the graph has one path.
    """
    attributes = Attributes(model)
    randomness.seed(1)
    outputs = pytree.tree_leaves(call(model, example))
    if attributes.changed():
        randomness.seed(1)
        outputs = pytree.tree_leaves(call(model, example))
    return outputs


def run(
    dense: nn.Module,
    compressed: nn.Module,
    graph: fx.Graph,
    batches: Batches,
    sites: Iterable[str],
    linked: set[str],
    visitor: Visitor,
    cap: int,
    padding: Padding,
    step: Callable[[str], None] = lambda site: None,
) -> None:
    """Visit the sites in the graph's order.

    Args:
        dense, compressed: the two networks; the visitor changes the second.
        linked: the sites whose output goes into an addition.
        cap: bytes of activations that are kept in memory.
        padding: which rows count.
        step: called with each site's name before it is fitted.

    Raises:
        OtherOptionsError: if a batch has other options than the first, before anything is fitted.
        ValueError: if the network rejects a batch.
    """
    sites = set(sites)
    nodes, links = schedule(graph, dense, linked)
    position = {node: i for i, node in enumerate(nodes)}
    randomness = Randomness(dense, compressed)
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in nodes}
    with ActivationStore(cap) as store:
        fitted: fx.Node | None = None  # the last fitted site; the next segment starts with its compressed output
        start = count = 0
        real: list[Callable[[str, Tensor], Tensor | None]] = []  # by batch
        seen = _noted(batches, lambda batch: real.append(padding.real(batch)))
        for cut, site in [(i, node) for i, node in enumerate(nodes) if node.op == "call_module"]:
            name = str(site.target)
            if name not in sites:
                continue
            step(name)
            # What later segments read. The site's own input is read once more, by the fitted chain.
            needed = {node for node in nodes[:cut] if last_use[node] > cut} | {site, *site.all_input_nodes}
            # The first segment stores the network's inputs like any other value: one pass over the data is enough,
            # and a loader that shuffles or augments cannot give a site other samples.
            for index, arguments in enumerate(_arguments(dense, seen) if start == 0 else [{}] * count):
                count = max(count, index + 1)
                segment = _Segment(dense, compressed, visitor, store, index, arguments, randomness)
                with _naming(dense, index):
                    if fitted is not None:
                        segment.compress(fitted)
                    for node in nodes[start:cut]:
                        segment.execute(node)
                    x, y, needed_repair = segment.site(site, links.get(name))
                    visitor.observe(name, index, x, y, needed_repair, real[index](name, x))
                segment.keep(needed, [node for node in site.all_input_nodes if last_use[node] <= cut])
            visitor.finish(name)
            fitted, start = site, cut + 1


def _noted(batches: Batches, note: Callable[[Any], None]) -> Iterator[Any]:
    for batch in batches:
        note(batch)
        yield batch


def _arguments(model: nn.Module, batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The arguments of every batch; all must have the options of the first."""
    first: dict[str, Any] = {}
    for index, batch in enumerate(batches):
        with _naming(model, index):
            arguments = bind(model, batch)
        options = {name: None if _has_tensor(value) else (value,) for name, value in arguments.items()}
        if index == 0:
            first = options
        if different := sorted(name for name in options.keys() | first.keys() if options.get(name) != first.get(name)):
            raise OtherOptionsError(f"batch {index} has another {different[0]!r} than the first batch")
        yield arguments


@contextmanager
def _naming(model: nn.Module, index: int) -> Iterator[None]:
    """Let errors of the network name the batch."""
    try:
        yield
    except (DataError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{type(model).__name__} rejects batch {index}: {type(error).__name__}: {error}") from error


def bind(model: nn.Module, batch: Any) -> dict[str, Any]:
    """The arguments of `forward` by name, with defaults; tensors are copies, because nodes may write into them."""
    batch = apart(model, batch)
    signature = inspect.signature(model.forward)
    if isinstance(batch, Mapping):
        bound = signature.bind(**batch)
    elif isinstance(batch, (tuple, list)):
        bound = signature.bind(*batch)
    else:
        bound = signature.bind(batch)
    bound.apply_defaults()
    for name, parameter in signature.parameters.items():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            if bound.arguments[name]:
                raise TypeError(f"forward takes the batch through *{name}")
            del bound.arguments[name]
    return bound.arguments


@dataclass
class _Segment:
    """One batch between two sites."""

    dense: nn.Module
    compressed: nn.Module
    visitor: Visitor
    store: ActivationStore
    batch: int
    arguments: Mapping[str, Any]
    randomness: Randomness
    values: dict[fx.Node, tuple[Any, Any]] = field(default_factory=dict)  # dense, and compressed or SAME
    fresh: set[fx.Node] = field(default_factory=set)

    def value(self, node: fx.Node) -> tuple[Any, Any]:
        if node not in self.values:
            self.values[node] = self.store.get((self.batch, node))
        return self.values[node]

    def execute(self, node: fx.Node) -> None:
        """Run a node in both networks, once where they agree."""
        inputs = [self.value(argument) for argument in node.all_input_nodes]
        agree = [compressed is SAME for _, compressed in inputs]
        same = all(agree) and not (node.op in ("call_module", "get_attr") and self.visitor.differs(str(node.target)))
        if not same and any(agree):
            # The node runs once per network and may write into its inputs: a shared value needs a copy for each.
            for argument, (value, compressed) in zip(node.all_input_nodes, inputs, strict=True):
                if compressed is SAME:
                    self._set(argument, value, pytree.tree_map_only(Tensor, torch.clone, value))
        if same or not node.meta[_DRAWS]:
            result = self._call(node, self.dense, 0)
            self._set(node, result, SAME if same else self._call(node, self.compressed, 1))
            return
        # Both networks draw the same numbers here, and the stream goes on as if one of them had run.
        before = self.randomness.state()
        result = self._call(node, self.dense, 0)
        after = self.randomness.state()
        self.randomness.restore(before)
        self._set(node, result, self._call(node, self.compressed, 1))
        self.randomness.restore(after)

    def site(self, node: fx.Node, link: Link | None) -> tuple[Tensor, Tensor, Repair | None]:
        """Input in the compressed network, output of the dense one, and what that should repair.

        The compressed output is computed after the fit, by `compress`.
        """
        layer = self.dense.get_submodule(str(node.target))
        # The user's hooks may change input and output. They go on to the chain, so the fit needs the rows between them.
        if layer._forward_hooks or layer._forward_pre_hooks:
            with _inside(layer) as dense:
                self._set(node, self._call(node, self.dense, 0), SAME)
            with _inside(self.compressed.get_submodule(str(node.target))) as here:
                self._call(node, self.compressed, 1)
            return here[0], dense[1], None
        y = self._call(node, self.dense, 0)
        self._set(node, y, SAME)
        x, compressed = self.value(node.all_input_nodes[0])
        needed = None if link is None else repair(layer, y, *self.value(link.other), link.scale)
        return (x if compressed is SAME else compressed), y, needed

    def compress(self, node: fx.Node) -> None:
        """Compute the compressed output of a site that was just fitted."""
        (read,), chain = node.all_input_nodes, self.compressed.get_submodule(str(node.target))
        dense, compressed = self.value(read)
        if isinstance(chain, LowRank) and isinstance(first := chain[0], Kept):
            # The units were all computed, by dense layers; from now on only the kept ones are.
            self.values[read] = dense, first.taken(dense if compressed is SAME else compressed)
        self._set(node, self.value(node)[0], self._call(node, self.compressed, 1))

    def keep(self, needed: set[fx.Node], compressed_only: Iterable[fx.Node]) -> None:
        """Store what later segments read, and drop the rest."""
        for node in compressed_only:  # only the chain reads it again: its dense value, often the larger part, can go
            if self.value(node)[1] is not SAME:
                self._set(node, None, self.value(node)[1])
        for node in self.fresh & needed:
            self.store.put((self.batch, node), self.values[node])
        for node in self.values.keys() - needed:
            self.store.drop((self.batch, node))

    def _set(self, node: fx.Node, dense: Any, compressed: Any) -> None:
        self.values[node] = (dense, compressed)
        self.fresh.add(node)

    def _call(self, node: fx.Node, model: nn.Module, side: int) -> Any:
        if node.op == "placeholder":
            return self.arguments[str(node.target)]

        def pick(argument: fx.Node) -> Any:
            dense, compressed = self.value(argument)
            return compressed if side and compressed is not SAME else dense

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), pick)
        return _apply(node, model, args, kwargs)


@contextmanager
def _inside(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Catch a layer's own input and output in a list, between the user's hooks before and after it."""
    caught: list[Tensor] = []

    def catch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        caught[:] = args[0] if args else next(iter(kwargs.values())), output.clone()

    with layer.register_forward_hook(own_thread(catch), prepend=True, with_kwargs=True):
        yield caught


def _apply(node: fx.Node, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if node.op == "call_module":
        return model.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(model.get_submodule(owner), name)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "output":
        return args[0]
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _run_dense(model: nn.Module, nodes: list[fx.Node], arguments: Mapping[str, Any], randomness: Randomness) -> Any:
    """Run a graph, and note in each node whether it draws random numbers."""
    values: dict[fx.Node, Any] = {}
    for node in nodes:
        node.meta[_DRAWS] = False
        if node.op == "placeholder":
            values[node] = arguments[str(node.target)]
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            state = randomness.state()
            values[node] = _apply(node, model, args, kwargs)
            node.meta[_DRAWS] = randomness.drawn_since(state)
    return values[node]


def _drop_constants(graph: fx.Graph, tensors: Collection[str]) -> None:
    """Remove the placeholders of fixed arguments and the checks that `torch.fx` adds; nothing else reads them."""
    dropped: dict[fx.Node, None] = {}
    for node in graph.nodes:
        fixed = node.op == "placeholder" and node.target not in tensors
        if fixed or any(argument in dropped for argument in node.all_input_nodes):
            dropped[node] = None
    for node in reversed(dropped):
        graph.erase_node(node)


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
    return bool(a == b)
