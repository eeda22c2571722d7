"""What the blocks of a network are called with: one pass shows it, and the blocks run again from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..running.exclusive import own_thread

# How much the output of a block that runs again may differ, relative to the largest.
CLOSE = 1e-4
_PLAIN = (int, float, complex, str, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class Call:
    """What a block is called with, by where each value comes from.

    Attributes:
        sources: of the values: ("given", i) of the first block's arguments, ("last", i) of the outputs of the block
            before, ("object", value) as it was before the first block, such as an empty cache, or ("constant", value).
        spec: of arguments and keyword arguments.
    """

    sources: list[tuple[str, Any]]
    spec: Any

    def arguments(self, given: list[Any], last: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies, since a block may write into them."""
        tensors = {"given": given, "last": last}
        leaves = []
        for source, value in self.sources:
            if source in tensors:
                leaves.append(tensors[source][value].clone())
            else:
                leaves.append(copy.deepcopy(value) if source == "object" else value)
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


class _Reached(BaseException):
    """Ends a pass at the first block."""


class Recorder:
    """One pass of a network that shows what its blocks are called with.

    Attributes:
        calls: of the blocks.
        given: the tensors that the first one got.
        last: the tensors that the last one returned.
        refused: why the blocks do not follow each other, None if they do.
    """

    def __init__(
        self, model: nn.Module, stack: Sequence[str], running: Callable[[], Any], *, first_only: bool = False
    ) -> None:
        self.stack, self.first_only = list(stack), first_only
        self.calls: list[Call] = []
        self.given: list[Tensor] = []
        self.last: list[Tensor] = []
        self.refused: str | None = None
        self._originals: list[Tensor] = []
        self._objects: list[tuple[Any, Any]] = []  # what the first block got but tensors, and copies from before it ran
        with ExitStack() as stacked, suppress(_Reached):
            for number, name in enumerate(stack):
                block = model.get_submodule(name)
                entered, left = own_thread(self._entering(number)), own_thread(self._left)
                stacked.callback(block.register_forward_pre_hook(entered, with_kwargs=True).remove)
                stacked.callback(block.register_forward_hook(left).remove)
            running()
        self._originals = []
        if self.refused is None and len(self.calls) != (1 if first_only else len(stack)):
            self.refused = f"{len(self.calls)} of {len(stack)} were called"

    def like(self, other: Recorder) -> bool:
        """Whether the first block is called in the same way."""
        first, theirs = self.calls[0], other.calls[0]
        return first.spec == theirs.spec and [kind for kind, _ in first.sources] == [kind for kind, _ in theirs.sources]

    def _entering(self, number: int) -> Callable[..., None]:
        def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if number != len(self.calls):
                self.refused = f"{self.stack[number]!r} is not called once, after the one before it"
                raise _Reached
            leaves, spec = pytree.tree_flatten((args, kwargs))
            if number == 0:
                self._originals = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
                self.given = [tensor.clone() for tensor in self._originals]
            self.calls.append(Call([self._source(leaf) for leaf in leaves], spec))
            if self.refused is None and any(source == "" for source, _ in self.calls[-1].sources):
                self.refused = f"{self.stack[number]!r} reads what neither the first block nor the one before it had"
            if self.refused is not None or self.first_only:
                raise _Reached

        return entered

    def _left(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.last = _tensors(output)

    def _source(self, leaf: Any) -> tuple[str, Any]:
        if not isinstance(leaf, Tensor):
            return self._object(leaf)
        for source, tensors in (("last", self.last), ("given", self._originals)):
            for place, tensor in enumerate(tensors):
                if tensor is leaf or _equal(tensor, leaf):  # a view of a table may be made for every block
                    return source, place
        return "", None

    def _object(self, leaf: Any) -> tuple[str, Any]:
        if isinstance(leaf, _PLAIN):
            return "constant", leaf
        if not self.calls:
            self._objects.append((leaf, copy.deepcopy(leaf)))
        return next((("object", kept) for each, kept in self._objects if each is leaf), ("constant", leaf))


def ran(model: nn.Module, block: str, call: Call, given: list[Tensor], last: list[Tensor]) -> list[Tensor]:
    """The tensors that a block returns when it is called once more."""
    args, kwargs = call.arguments(given, last)
    return _tensors(model.get_submodule(block)(*args, **kwargs))


def differs(model: nn.Module, recorder: Recorder) -> str | None:
    """Why the blocks, run one by one on what was recorded, do not give what they gave; None if they do."""
    last: list[Tensor] = []
    try:
        for block, call in zip(recorder.stack, recorder.calls, strict=True):
            last = ran(model, block, call, recorder.given, last)
    except Exception as error:  # a foreign forward that does not run twice may raise anything
        return f"{type(error).__name__}: {error}"
    same = len(last) == len(recorder.last) and all(map(_close, last, recorder.last))
    return None if same else "they give something else when they run again"


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return one.shape == other.shape and torch.equal(one, other)
    return bool((one - other).abs().max() <= CLOSE * other.abs().max()) if one.numel() else True


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
