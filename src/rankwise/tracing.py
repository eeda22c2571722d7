"""The graph of a network whose factorised layers are nodes of their own."""

from __future__ import annotations

from torch import fx, nn

from .formats import LowRank


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LowRank) or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module, otherwise: str) -> fx.Graph:
    """The graph of a network's forward; its modules are the network's own.

    Args:
        model: the network.
        otherwise: what to do where it cannot be traced, for the message.

    Raises:
        ValueError: if the network cannot be traced.

    Example:
        >>> [node.op for node in traced(nn.Sequential(nn.ReLU()), "").nodes]
        ['placeholder', 'call_module', 'output']
    """
    try:
        return _Tracer().trace(model)
    except Exception as error:  # tracing runs the user's forward on proxies: anything may come out of it
        raise ValueError(
            f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}); {otherwise}"
        ) from error
