"""Trace the graph of a network, with each chain as one node."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import reduce
from typing import Any

from torch import Tensor, fx, nn

from ..formats import LowRank
from ..layers.attention import Attention
from ..running.pristine import pristine


class OwnTracer(fx.Tracer):
    """A tracer that lets other threads run their networks.

    While one thread traces, `torch.fx` patches the calls and attributes of all modules in the process: a call in
    another thread would become a node of this graph, or an error there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _Tracer(OwnTracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (LowRank, Attention, nn.Identity)) or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module, otherwise: str) -> fx.Graph:
    """The graph of a network's forward in eval mode; its modules are the network's own.

    Raises:
        ValueError: if the network cannot be traced; the message ends with `otherwise`, the fix.

    Example:
        >>> [node.op for node in traced(nn.Sequential(nn.ReLU()), "").nodes]
        ['placeholder', 'call_module', 'output']
    """
    try:
        with pristine(model):
            return _Tracer().trace(model)
    except Exception as error:  # tracing runs the user's forward on proxies: anything may come out of it
        raise ValueError(
            f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}); {otherwise}"
        ) from error


def used_once(model: nn.Module, graph: fx.Graph) -> Callable[[nn.Module], bool]:
    """A test of modules: called once, without hooks, and no other module or node owns or reads its tensors.

    The values of such a module can be changed if the readers of its output are changed accordingly. Hooks count as
    readers: pruning and old-style weight norm write the weight in them.
    """
    modules = dict(model.named_modules())
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    owners = Counter(id(tensor) for tensor in _tensors(model))
    read = [str(node.target).split(".") for node in graph.nodes if node.op == "get_attr"]
    owners.update(id(reduce(getattr, names, model)) for names in read)

    def test(module: nn.Module) -> bool:
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
        return calls[id(module)] == 1 and not hooked and all(owners[id(tensor)] == 1 for tensor in _tensors(module))

    return test


def _tensors(module: nn.Module) -> list[Tensor]:
    both = (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return [tensor for each in both for _, tensor in each]
