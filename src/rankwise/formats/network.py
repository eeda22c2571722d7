"""From the description of a tensor network to the chain of layers that computes it.

A description gives the letters of every factor, the one at the input first: "rc", "rh", "rw", "tr" is the canonical
polyadic form of a convolution. Every factor becomes one layer. Of the letters of its input, a factor

- sums over those that it holds and that no later factor and no output needs,
- keeps apart those that it holds and that are needed again: they become groups of a grouped layer,
- does not see those that it does not hold: they wait among the samples.

The groups of a grouped convolution are a letter "g" that every factor holds. `channels` and `outputs` are the letters
of the channels of input and output, `spatial` those of the taps: one for all, one per direction, or several for a
direction whose taps factors share, `h = 3 h1 + h2`, the coarse ones first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers.modules import Arrange, Bias, GroupedLinear
from ..linalg.equation import Equation, compose
from .convolution import Taps, convolution
from .weights import read, write


class Step(NamedTuple):
    """One factor as a layer: letters of its groups, the letters it sums over and makes, the taps, and those that wait.

    For "rh" of "rc", "rh", "rw", "tr": groups "gr", summed "", made "", taps "h", waiting "".
    """

    letters: str
    groups: str
    summed: str
    made: str
    taps: str
    waiting: str

    @property
    def layout(self) -> str:
        """Letters of the layer's weight, groups and outputs first."""
        return self.groups + self.made + self.summed + self.taps


@dataclass(frozen=True)
class Network:
    """A tensor network with the sizes of its letters.

    Attributes:
        factors: letters of each factor without "g", the one at the input first.
        channels, outputs, spatial: letters of the input's channels, the output's channels and the taps.
        sizes: of all letters, "g" included.
        kernel_size: of the convolution, () for a linear layer.
        shared: letters of each direction, where there are several for one.
    """

    factors: tuple[str, ...]
    channels: str
    outputs: str
    spatial: str
    sizes: Mapping[str, int]
    kernel_size: tuple[int, ...]
    shared: tuple[str, ...] = ()

    @property
    def equation(self) -> Equation:
        """The equation of one group."""
        return Equation(self.factors, self.outputs, self.channels + self.spatial)

    def shape(self, letters: Iterable[str]) -> tuple[int, ...]:
        return tuple(self.sizes[letter] for letter in letters)

    def count(self, letters: Iterable[str]) -> int:
        """Product of the sizes of these letters."""
        return math.prod(self.shape(letters))

    @property
    def steps(self) -> tuple[Step, ...]:
        return _steps(self.factors, self.channels, self.outputs, self.spatial)

    def unfolding_rank(self, modes: str) -> int:
        """The largest rank of the kernel unfolded with these modes as rows: the states on the least cut between both.

        Every factor stands on one of two sides. The cut goes through the bonds between the sides, and through the modes
        on the wrong one.

        Example:
            >>> sizes = {"g": 1, "t": 8, "c": 6, "q": 9, "a": 3, "b": 2}
            >>> tucker2 = Network(("bc", "abq", "ta"), "c", "t", "q", sizes, (3, 3))
            >>> tucker2.unfolding_rank("t"), tucker2.unfolding_rank("c"), tucker2.unfolding_rank("q")
            (3, 2, 6)
        """
        return min(map(self.count, _cuts(self.factors, modes, self.outputs + self.channels + self.spatial)))

    @cached_property
    def arrangements(self) -> tuple[tuple[tuple[str, str], tuple[str, str]] | None, ...]:
        """Before each step and at the end: the (rows, channels) at hand and those needed, None where they are equal.

        Letters of size 1 are left out: they may stand anywhere.
        """
        here, found = self._several("", "g" + self.channels), []
        for step in self.steps:
            needed = self._several(step.waiting, step.groups + step.summed)
            found.append(None if here == needed else (here, needed))
            here = self._several(step.waiting, step.groups + step.made)
        needed = self._several("", "g" + self.outputs)
        return (*found, None if here == needed else (here, needed))

    def _several(self, rows: str, channels: str) -> tuple[str, str]:
        several = {letter for letter, size in self.sizes.items() if size > 1}
        return "".join(x for x in rows if x in several), "".join(x for x in channels if x in several)

    def params(self) -> int:
        """Parameters of all factors."""
        return sum(self.count("g" + letters) for letters in self.factors)

    def layers(self, layer: nn.Module, bias: bool, options: Mapping[str, Any]) -> list[nn.Module]:
        """The layers of the chain for a dense layer, before values are set."""
        made: list[nn.Module] = []
        whole = self.arrangements[-1] is None  # the last factor makes all outputs in order, so it can add the bias
        for number, step in enumerate(self.steps):
            made += self._arrange(number)
            made.append(self._layer(number, layer, bias and whole and step is self.steps[-1], options))
        made += self._arrange(len(self.steps))
        if bias and (not whole or isinstance(made[-1], GroupedLinear)):
            made.append(Bias(self.count("g" + self.outputs), len(self.kernel_size), **options))
        return made

    def _arrange(self, place: int) -> list[nn.Module]:
        if (change := self.arrangements[place]) is None:
            return []
        (rows, channels), (new_rows, new_channels) = change
        before, after = rows + channels, new_rows + new_channels
        order = [before.index(letter) for letter in after]
        return [Arrange(self.shape(before), order, (len(rows), len(new_rows)), len(self.kernel_size))]

    def _layer(self, number: int, layer: nn.Module, bias: bool, options: Mapping[str, Any]) -> nn.Module:
        step = self.steps[number]
        groups = self.count(step.groups)
        inputs, outputs = groups * self.count(step.summed), groups * self.count(step.made)
        if not self.kernel_size:
            if groups > 1:
                return GroupedLinear(inputs, outputs, groups, **options)
            return nn.Linear(inputs, outputs, bias=bias, **options)
        return convolution(layer, inputs, outputs, groups, self.held(number), bias=bias, **options)

    @property
    def by_direction(self) -> tuple[str, ...]:
        """The letters of each direction of the kernel; one letter for all taps stands for every direction."""
        if self.shared or len(self.spatial) != len(self.kernel_size):
            return self.shared or (self.spatial,) * len(self.kernel_size)
        return tuple(self.spatial)

    def held(self, number: int) -> dict[int, Taps]:
        """What a step holds of each direction of the kernel."""
        held: dict[int, Taps] = {}
        for direction, letters in enumerate(self.by_direction):
            own = [letter for letter in letters if letter in self.steps[number].taps]
            if not own:
                continue
            taps = [set(letters) & set(step.taps) for step in self.steps]
            held[direction] = Taps(
                size=self.count(own) if self.shared else self.kernel_size[direction],
                spread=self.count(letters[letters.index(own[-1]) + 1 :]),
                first=not any(taps[:number]),
                last=not any(taps[number + 1 :]),
            )
        return held

    def reached(self, count: int) -> tuple[list[int], dict[int, int]]:
        """After some steps, the directions whose taps are all held, and the taps that a part of the others spans."""
        spans: dict[int, int] = {}
        done = []
        for number in range(count):
            for direction, taps in self.held(number).items():
                spans[direction] = spans.get(direction, 1) + (taps.size - 1) * taps.spread
                if taps.last:
                    done.append(direction)
        return done, {direction: span for direction, span in spans.items() if direction not in done}

    def weighted(self, chain: Iterable[nn.Module]) -> list[Any]:
        """Layers of a chain that hold factors."""
        return [module for module in chain if not isinstance(module, (Arrange, Bias))]

    def write(self, chain: Iterable[nn.Module], factors: Sequence[Tensor]) -> None:
        """Copy factors (each with the groups first) into the layers."""
        for module, step, factor in zip(self.weighted(chain), self.steps, factors, strict=True):
            write(module, torch.einsum(f"g{step.letters}->{step.layout}", factor))

    def read(self, chain: Iterable[nn.Module]) -> list[Tensor]:
        """The factors in the layers, each with the groups first."""
        return [
            torch.einsum(f"{step.layout}->g{step.letters}", read(module).reshape(self.shape(step.layout)))
            for module, step in zip(self.weighted(chain), self.steps, strict=True)
        ]

    def kernel(self, factors: Sequence[Tensor]) -> Tensor:
        """The weight of factors with the groups first, all outputs x D."""
        return compose(self.equation, factors).reshape(self.count("g" + self.outputs), -1)


@lru_cache(maxsize=1024)  # a curve asks for the costs of many ranks of one form
def _steps(factors: tuple[str, ...], channels: str, outputs: str, spatial: str) -> tuple[Step, ...]:
    state, steps = "g" + channels, []
    for number, letters in enumerate(factors):
        later = {"g", *outputs, *"".join(factors[number + 1 :])}
        held = set(letters) | {"g"}
        steps.append(
            Step(
                letters=letters,
                groups="".join(letter for letter in state if letter in held & later),
                summed="".join(letter for letter in state if letter in held - later),
                made="".join(letter for letter in letters if letter not in state + spatial),
                taps="".join(letter for letter in letters if letter in spatial),
                waiting="".join(letter for letter in state if letter not in held),
            )
        )
        state = steps[-1].waiting + steps[-1].groups + steps[-1].made
    assert set(state) == {"g", *outputs}, f"{factors} leave {state}"
    return tuple(steps)


@lru_cache(maxsize=1024)
def _cuts(factors: tuple[str, ...], rows: str, modes: str) -> tuple[str, ...]:
    """Letters of every cut between some modes and the others, without those that go through all letters of another."""
    cuts = set[frozenset[str]]()
    for sides in product((True, False), repeat=len(factors)):
        here = {letter for letters, side in zip(factors, sides, strict=True) for letter in letters if side}
        there = {letter for letters, side in zip(factors, sides, strict=True) for letter in letters if not side}
        misplaced = {letter for letter in modes if letter in (there if letter in rows else here)}
        cuts.add(frozenset((here & there) | misplaced))
    return tuple(sorted("".join(sorted(cut)) for cut in cuts if not any(other < cut for other in cuts)))
