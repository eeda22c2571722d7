"""Run both networks block by block: hidden states are kept, so that no site runs a network from the start.

Transformers are stacks of blocks that are called one after the other, each with the output of the one before and with
arguments of the first (masks, positions). A block runs again for each of its sites; what it was called with is kept for
both networks, and after its last site both go on to the next block. Each block runs about six times whatever the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor, nn

from ..running.randomness import Randomness
from . import hooks
from .graph import Visitor
from .recording import Call, Recorder, differs, ran
from .spill import ActivationStore


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
                both.append(Recorder(model, stack, running, first_only=side == 1))
            refused = both[0].refused or (None if both[1].like(both[0]) else "the two networks call them differently")
            if refused is None and index == 0:
                refused = differs(dense, both[0])
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


@dataclass
class _Stream:
    """One batch on its way through the blocks of both networks."""

    dense: nn.Module
    compressed: nn.Module
    whole: hooks.Pass
    calls: list[Call]
    store: ActivationStore
    index: int

    def at(self, block: str, number: int) -> hooks.Pass:
        """The pass of a block."""

        def running(side: int) -> Callable[[], list[Tensor]]:
            return lambda: self._run(block, number, side)

        return hooks.Pass(running(0), running(1), self.whole.real)

    def advance(self, block: str, number: int) -> None:
        """Go on to the next block in both networks."""
        for side, tensors in enumerate([self._run(block, number, side) for side in (0, 1)]):
            self.store.put((self.index, side, "last"), tensors)

    def _run(self, block: str, number: int, side: int) -> list[Tensor]:
        key = self.index, side, "last"
        last = self.store.get(key) if key in self.store else []
        given = self.store.get((self.index, side, "given"))
        return ran((self.dense, self.compressed)[side], block, self.calls[number], given, last)


@dataclass(frozen=True)
class _Passes:
    """The passes of one block, one for each batch."""

    streams: list[_Stream]
    block: str
    number: int

    def __iter__(self) -> Iterator[hooks.Pass]:
        return (stream.at(self.block, self.number) for stream in self.streams)
