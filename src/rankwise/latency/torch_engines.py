"""Networks that torch runs: eagerly, compiled, or on a GPU."""

from __future__ import annotations

import copy
import itertools
import types
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..timing.clock import synchronised
from .engine import Running, Work
from .layers import device_of

_numbers = itertools.count()


class Eager(Running):
    """Eager torch, one kernel after the other, on the network's own device."""

    name: ClassVar[str] = "torch"
    summary: ClassVar[str] = "eager torch"

    def device(self, network: nn.Module) -> str:
        where = device_of(network)
        if where.type == "cuda":
            return torch.cuda.get_device_name(where)
        return super().device(network) if where.type == "cpu" else f"{super().device(network)}, {where.type}"

    def prepare(self, work: Work) -> Callable[[], object]:
        module, (args, kwargs) = work
        return synchronised(lambda: module(*args, **kwargs), device_of(module))


class Compiled(Eager):
    """`torch.compile`; compiling takes seconds for a layer and minutes for a network."""

    name: ClassVar[str] = "compile"
    summary: ClassVar[str] = "torch.compile"

    def prepare(self, work: Work) -> Callable[[], object]:
        compiled = torch.compile(_own_code(work.module), dynamic=False)
        args, kwargs = work.given
        try:
            compiled(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ValueError(f"torch.compile cannot compile {type(work.module).__name__}: {error}") from error
        return synchronised(lambda: compiled(*args, **kwargs), device_of(work.module))


class Cuda(Eager):
    """Eager torch on the first CUDA device; networks are copied to it."""

    name: ClassVar[str] = "cuda"
    summary: ClassVar[str] = "eager torch on a CUDA device"

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        if not torch.cuda.is_available():
            raise ValueError(
                "engine 'cuda' needs a CUDA device and a torch built for it (pip install torch); torch finds none"
            )

    def device(self, network: nn.Module) -> str:
        return torch.cuda.get_device_name()

    def prepare(self, work: Work) -> Callable[[], object]:
        module = copy.deepcopy(work.module).cuda()
        given = pytree.tree_map(lambda leaf: leaf.cuda() if isinstance(leaf, torch.Tensor) else leaf, work.given)
        return super().prepare(Work(module, given))


def _own_code(module: nn.Module) -> Callable[..., Any]:
    """The module as a function with its own code object: torch.compile keeps at most eight results for each."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    code = forward.__code__.replace(co_name=f"forward_{next(_numbers)}")
    return types.FunctionType(code, globals(), code.co_name, None, forward.__closure__)
