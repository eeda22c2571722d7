"""Try beforehand whether a network works with other layers in the place of its own.

A forward may reach a layer past the registry of modules, ask for its class, or work on its weight. In a copy that
shares all tensors, each layer that could be factorised is wrapped in a stand-in that looks like a factorised one, and
the copy is run once. Only the looks differ: a layer whose calls or results differ cannot be factorised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..layers.low_rank import LowRank, LowRankLayer, Ranks
from ..running.calling import call, tensor_leaves
from ..running.copying import copied
from ..running.exclusive import own_thread
from ..running.guards import in_words
from ..running.pristine import pristine
from .references import closure_of
from .replacing import replace_all


def unreplaceable(model: nn.Module, sites: Mapping[str, Mapping[str, int]], batch: Any, output: Any) -> dict[str, str]:
    """The sites whose layers cannot be replaced in the network, each with the reason in words.

    Args:
        model: an unwrapped network.
        sites: name of a site -> the qualified name of each of its layers -> its calls in one forward.
        output: what it returns for that batch, from the same random state.

    Raises:
        ValueError: if a copy of the network works on tensors of the network that it was copied from.
    """
    expected = tensor_leaves(output)
    trial = _Trial(model, sites, batch, expected)
    if not trial.passes(list(sites)):
        # The outputs of a network that differ without a single stand-in say nothing: only calls are compared then.
        trial.compares = trial.passes([])
    found: dict[str, str] = {}
    # Again after each round: one layer's failure may have hidden another's.
    while not trial.passes(left := [name for name in sites if name not in found]):
        found.update(trial.culprits(left) or {name: trial.reason(name) for name in left})
    return found


class _Log:
    """What one stand-in has seen. As plain attributes of the module `pristine` would put these numbers back."""

    def __init__(self, running: list[str]) -> None:
        self.running = running
        self.calls = 0
        self.read_by: str | None = None


class _Itself:
    """The format of a layer that is not factorised."""

    name = "stand-in"

    def chain_weight(self, chain: LowRank) -> Tensor:
        weight = chain[0].weight
        assert isinstance(weight, Tensor)
        return weight

    def chain_bias(self, chain: LowRank) -> Tensor | None:
        bias: Tensor | None = getattr(chain[0], "bias", None)
        return bias

    def cut(self, chain: LowRank, ranks: Ranks) -> LowRank:
        raise AssertionError("a stand-in has no ranks")


class _StandIn(LowRankLayer):
    """A layer that looks like a factorised one, counts its calls and notes who reads its weight."""

    def __init__(self, layer: nn.Module, running: list[str]) -> None:
        super().__init__(_Itself(), (), [layer], layer)
        self.log = _Log(running)

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        self.log.calls += 1
        return self[0](input, *args, **kwargs)

    def _dense_weight(self) -> Tensor:
        self.log.read_by = self.log.running[-1] if self.log.running else "the model itself"
        return self.format.chain_weight(self)  # as the layer stores it


class _Trial:
    """Runs a copy of a network with stand-ins for some sites."""

    def __init__(
        self, model: nn.Module, sites: Mapping[str, Mapping[str, int]], batch: Any, expected: Sequence[Tensor]
    ) -> None:
        self.model, self.sites, self.batch, self.expected = model, sites, batch, expected
        self.compares = True
        self.reasons: dict[str, str] = {}
        self.error = ""

    def passes(self, names: Sequence[str]) -> bool:
        """Whether the network works with stand-ins for these sites; `reasons` names those that visibly fail."""
        self.reasons, self.error = {}, ""
        trial, originals = sharing_copy(self.model)
        running: list[str] = []
        standins: dict[str, _StandIn] = {}
        for name in names:
            for path in self.sites[name]:
                standins[path] = _StandIn(trial.get_submodule(path), running)
        replace_all(trial, standins)
        with pristine(trial), ExitStack() as stack:
            for path, module in trial.named_modules():
                entering, leaving = map(own_thread, _noting(running, in_words(module, path)))
                stack.callback(module.register_forward_pre_hook(entering, prepend=True).remove)
                stack.callback(module.register_forward_hook(leaving, always_call=True).remove)
            reads = stack.enter_context(Reads(originals))
            try:
                output = call(trial, self.batch)
            except ValueError as error:
                if not names:
                    raise
                self.error = str(error.__cause__ or error)
                return False
        if reads.found:
            raise ValueError(f"a copy of {type(self.model).__name__} {works_on_another(self.model, reads.found)}")
        for name in names:
            for path, wanted in self.sites[name].items():
                log = standins[path].log
                if log.read_by is not None:
                    self.reasons[name] = f"its weight is used directly by {log.read_by}"
                elif log.calls != wanted:
                    host = self._host(path)
                    self.reasons[name] = (
                        f"{host} does not call another layer in its place: it checks the class of the layer"
                    )
        if self.reasons:
            return False
        got = tensor_leaves(output)
        return not self.compares or same(got, self.expected)

    def culprits(self, names: Sequence[str]) -> dict[str, str]:
        """Among sites that fail together, those that fail alone or visibly, with their reasons."""
        if self.reasons:
            return dict(self.reasons)
        if len(names) == 1:
            return {names[0]: self.reason(names[0])}
        found: dict[str, str] = {}
        # By halves: k culprits among n sites cost about k log n trials, each a forward of the network.
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            if not self.passes(half):
                found.update(self.culprits(half))
        return found

    def reason(self, name: str) -> str:
        """Why the forward fails, or computes something else, with another layer in a site's place."""
        host = self._host(next(iter(self.sites[name])))
        if self.error:
            return f"{host} fails with another layer in its place: {self.error}"
        return f"{host} computes something else with another layer in its place: it checks the class of the layer"

    def _host(self, path: str) -> str:
        """The module whose forward calls the layer, in words."""
        while path:
            path = path.rpartition(".")[0]
            module = self.model.get_submodule(path)
            if not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) or not path:
                break
        return in_words(module, path)


def sharing_copy(model: nn.Module) -> tuple[nn.Module, dict[int, str]]:
    """A copy of a network's modules on the same memory, and the name of each of the network's tensors by its id."""
    memo: dict[int, Any] = {}
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        memo[id(parameter)] = made = nn.Parameter(parameter.detach(), parameter.requires_grad)
        made.__dict__.update(parameter.__dict__)
        names[id(parameter)] = name
    for name, buffer in model.named_buffers():
        memo[id(buffer)] = buffer.detach()
        names[id(buffer)] = name
    return copied(model, memo), names


def works_on_another(model: nn.Module, tensor: str) -> str:
    """What is wrong with a copy that works on a tensor of the network it was copied from, and what to do."""
    caught = closure_of(model, model.get_submodule(tensor.rpartition(".")[0]))
    how = f"{caught} holds the module in a closure" if caught else "a function or a global holds the module"
    return f"still works on {tensor!r} of the network it was copied from: {how}; reach it through self instead"


class Reads(TorchFunctionMode):
    """Notes the first tensor of another network that a function is called with."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.found: str | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self.found is None:
            for leaf in pytree.tree_leaves((args, kwargs or {})):
                if id(leaf) in self.names:
                    self.found = self.names[id(leaf)]
        return func(*args, **(kwargs or {}))


def _noting(running: list[str], words: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks that keep the stack of running modules."""

    def left(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    return lambda module, args: running.append(words), left


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors hold the same up to rounding."""
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return False
    for one, other in zip(ours, theirs, strict=True):
        if not one.is_floating_point():
            if not torch.equal(one, other):
                return False
        elif one.numel():
            largest = float(other.abs().nan_to_num(0.0, posinf=0.0).max())
            if not torch.allclose(one, other, rtol=1e-4, atol=1e-6 * largest, equal_nan=True):
                return False
    return True
