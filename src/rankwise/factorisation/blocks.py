"""Run both networks block by block: hidden states are kept, so that no site runs a network from the start.

Transformers are stacks of blocks that are called one after the other, each with the output of the one before and with
arguments of the first (masks, positions). A block runs again for each of its sites; what it was called with is kept for
both networks, and after its last site both go on to the next block. Each block runs about six times whatever the depth.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..running.exclusive import own_thread
from ..running.randomness import Randomness
from . import hooks
from .graph import Visitor
from .spill import ActivationStore

# How much the output of a block that runs again may differ, relative to the largest.
CLOSE = 1e-4
_PLAIN = (int, float, complex, str, type(None), torch.dtype, torch.device)


def stacks(model: nn.Module, places: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """The places in runs that lie in one stack of blocks, with the names of these blocks; [] outside of any.

    A stack is an outermost list or sequence of modules of which at least two hold places.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in "ab"))
        >>> stacks(model, ["0", "1.0.0", "1.1.0"])
        [(['0'], []), (['1.0.0', '1.1.0'], ['1.0', '1.1'])]
    """
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and not any(_inside(name, outer) for outer in found):
            blocks = [f"{name}.{key}".lstrip(".") for key, _ in module.named_children()]
            if sum(any(_inside(place, block) for place in places) for block in blocks) > 1:
                found[name] = blocks

    def stack_of(place: str) -> str | None:
        return next((name for name, blocks in found.items() if any(_inside(place, block) for block in blocks)), None)

    return [(list(run), [] if name is None else found[name]) for name, run in groupby(places, stack_of)]


def run(
    dense: nn.Module,
    compressed: nn.Module,
    whole: hooks.Whole,
    stack: Sequence[str],
    places: Sequence[str],
    linked: set[str],
    visitor: Visitor,
    seed: int,
    cap: int,
    step: Callable[[str], None] = lambda place: None,
) -> str | None:
    """Visit the sites of a stack of blocks; the reason if it cannot run block by block, before anything is fitted.

    Args:
        whole: passes of the whole networks, which show what the blocks are called with.
        stack: names of the blocks.
        places, linked, visitor, step: as for `graph.run`.
        seed: of random numbers that the networks draw.
        cap: bytes of activations that are kept in memory.
    """
    if all(map(visitor.is_done, places)):
        stack = []
    randomness = Randomness(dense, compressed)
    with ActivationStore(cap) as store:
        streams: list[_Stream] = []
        for index, each in enumerate(whole if stack else ()):
            both = []
            for side, (model, running) in enumerate(((dense, each.dense), (compressed, each.compressed))):
                randomness.seed(seed + index)
                both.append(_Recorder(model, stack, running, first_only=side == 1))
            refused = both[0].refused or (None if both[1].like(both[0]) else "the two networks call them differently")
            if refused is None and index == 0:
                refused = _differs(dense, both[0])
            if refused is not None:
                return refused
            for side, recorder in enumerate(both):
                store.put((index, side, "given"), recorder.given)
            streams.append(_Stream(dense, compressed, each, both[0].calls, store, index))
        rest = list(places)
        for number, block in enumerate(stack):
            inside = [place for place in rest if _inside(place, block)]
            rest = [place for place in rest if place not in inside]
            passes = _Passes(streams, block, number)
            hooks.run(dense, compressed, passes, inside, linked, visitor, seed, step)
            if not rest:
                break
            for index, stream in enumerate(streams):
                randomness.seed(seed + index)
                stream.advance(block, number)
        # What is left was all fitted before, and is only put in.
        hooks.run(dense, compressed, whole, rest, linked, visitor, seed, step)
    return None


def _inside(name: str, outer: str) -> bool:
    return not outer or name.startswith(f"{outer}.")


@dataclass(frozen=True)
class _Call:
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


class _Recorder:
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
        self.calls: list[_Call] = []
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

    def like(self, other: _Recorder) -> bool:
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
            self.calls.append(_Call([self._source(leaf) for leaf in leaves], spec))
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


@dataclass
class _Stream:
    """One batch on its way through the blocks of both networks."""

    dense: nn.Module
    compressed: nn.Module
    whole: hooks.Pass
    calls: list[_Call]
    store: ActivationStore
    index: int
    sides: tuple[int, int] = field(default=(0, 1))

    def at(self, block: str, number: int) -> hooks.Pass:
        """The pass of a block."""

        def running(side: int) -> Callable[[], list[Tensor]]:
            return lambda: self._run(block, number, side)

        return hooks.Pass(running(0), running(1), self.whole.real)

    def advance(self, block: str, number: int) -> None:
        """Go on to the next block in both networks."""
        after = [self._run(block, number, side) for side in self.sides]
        for side, tensors in zip(self.sides, after, strict=True):
            self.store.put((self.index, side, "last"), tensors)

    def _run(self, block: str, number: int, side: int) -> list[Tensor]:
        key = self.index, side, "last"
        last = self.store.get(key) if key in self.store else []
        return _ran((self.dense, self.compressed)[side], block, self.calls[number], self._given(side), last)

    def _given(self, side: int) -> list[Tensor]:
        given: list[Tensor] = self.store.get((self.index, side, "given"))
        return given


@dataclass(frozen=True)
class _Passes:
    """The passes of one block, one for each batch."""

    streams: list[_Stream]
    block: str
    number: int

    def __iter__(self) -> Iterator[hooks.Pass]:
        return (stream.at(self.block, self.number) for stream in self.streams)


def _ran(model: nn.Module, block: str, call: _Call, given: list[Tensor], last: list[Tensor]) -> list[Tensor]:
    args, kwargs = call.arguments(given, last)
    return _tensors(model.get_submodule(block)(*args, **kwargs))


def _differs(model: nn.Module, recorder: _Recorder) -> str | None:
    """Why the blocks, run one by one on what was recorded, do not give what they gave; None if they do."""
    last: list[Tensor] = []
    try:
        for block, call in zip(recorder.stack, recorder.calls, strict=True):
            last = _ran(model, block, call, recorder.given, last)
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
