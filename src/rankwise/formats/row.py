"""Rows of modes: outputs, taps and channels of a weight as one mode or several, each with a factor of its own.

In a semi-tensor row a factor serves several slices of its mode alike. The slices are a mode of a neighbouring factor.

Letters: t, u, v, m, n output modes, i, j, k, l, p input modes, c all channels in one mode; h kernel rows, w kernel
columns, z kernel planes, q the one tap of a 1 x 1 convolution; a, b, d, e, f, y, o, r bonds, x the bond that closes a
ring. Slices of all outputs are u, of all channels s, of split modes m, n, l, p, s.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .base import Ranks
from .ladders import split_number
from .shape import Modes, Shape

OUTPUTS, INPUTS, BONDS, SLICES = "tuvmn", "ijklp", "abdefyor", "mnlps"
# Modes of each side, where every mode has its factor.
MOST_MODES = 3


class Row(NamedTuple):
    """Modes of each factor, the one at the outputs first, and the modes of outputs, channels and taps."""

    groups: tuple[str, ...]
    outputs: str
    channels: str
    spatial: str
    sizes: dict[str, int]
    slices: str = ""  # modes of slices, where there are several

    @property
    def bonds(self) -> str:
        return BONDS[: len(self.groups) - 1]

    def terms(self, closed: bool) -> list[str]:
        """Letters of the factors, the one at the outputs first."""
        bonds = self.bonds
        terms = [(bonds[k - 1] if k else "") + group + bonds[k : k + 1] for k, group in enumerate(self.groups)]
        if closed:
            terms[0], terms[-1] = "x" + terms[0], terms[-1] + "x"
        return terms

    def size(self, *groups: int) -> int:
        """Product of the sizes of some groups of modes."""
        return math.prod(self.sizes[letter] for group in groups for letter in self.groups[group])

    def slices_at(self, group: int, side: str) -> int:
        """Slices of modes of a side that a factor holds."""
        return math.prod(
            self.sizes[letter] for letter in self.groups[group] if letter in self.slices and letter in side
        )

    def limits(self) -> Ranks:
        """Ranks at which a train is exact."""
        count = len(self.groups)
        return tuple(min(self.size(*range(k)), self.size(*range(k, count))) for k in range(1, count))


def paired(shape: Shape, outputs: Modes | None, inputs: Modes | None) -> Row:
    """The row of a matrix: each factor holds one output and one input mode. A side that is not given is split evenly.

    The largest output mode goes with the smallest input mode, so that the factors have similar sizes.
    """
    count = len(outputs or inputs or (1, 1, 1))
    outputs = outputs or split_number(shape.outputs, count)
    inputs = inputs or split_number(shape.channels, count)[::-1]
    T, C = OUTPUTS[:count], INPUTS[:count]
    groups = [t + c for t, c in zip(T, C, strict=True)]
    tap = "q" if shape.kernel else ""
    sizes = {"g": shape.groups, "q": 1, **dict(zip(T + C, (*outputs, *inputs), strict=True))}
    return Row((*groups[:-1], groups[-1] + tap), T, C, tap, sizes)


def single(shape: Shape, outputs: Modes | None, inputs: Modes | None, slices: int = 1, every: bool = False) -> Row:
    """The row with one mode in each factor: outputs, directions of the kernel, inputs.

    Args:
        outputs, inputs: sizes of the modes of a side, None for one mode.
        slices: that a factor serves alike, of each mode whose size they divide.
        every: all factors but the first serve slices, held by the factor before; else the first and the last, whose
            slices the next factor inwards holds.
    """
    T, C = OUTPUTS[: len(outputs or "t")], INPUTS[: len(inputs)] if inputs and len(inputs) > 1 else "c"
    directions, tap = (shape.directions, "") if shape.taps > 1 else ("", "q" if shape.kernel else "")
    sizes = {"g": shape.groups, "q": 1, **dict(zip(shape.directions, shape.kernel, strict=True))}
    sizes |= dict(zip(T + C, (*(outputs or (shape.outputs,)), *(inputs or (shape.channels,))), strict=True))
    # A matrix of two modes has no factor inwards; a factor without a mode of its own holds the slices.
    inner = directions or [""] * (slices > 1 and not every and len(T + C) == 2)
    groups, names = [*T, *inner, *C], iter(SLICES)

    def slice_of(mode: str, holder: int) -> str:
        """Split slices off a mode, fastest in its order, and give them to another factor."""
        letter = {"t": "u", "c": "s"}[mode] if mode in (T, C) else next(names)
        divides = sizes[mode] % slices == 0
        sizes[mode], sizes[letter] = (sizes[mode] // slices, slices) if divides else (sizes[mode], 1)
        groups[holder] = letter + groups[holder] if mode in T else groups[holder] + letter
        return mode + letter

    sliced = {letter: letter for letter in T + C}
    if slices > 1 and every:
        for place, mode in enumerate(list(groups)):
            if place and mode in sliced:
                sliced[mode] = slice_of(mode, place - 1)
    elif slices > 1:
        sliced[T[0]], sliced[C[-1]] = slice_of(T[0], 1), slice_of(C[-1], len(groups) - 2)
    groups[-1] += tap
    whole = ["".join(sliced[letter] for letter in side) for side in (T, C)]
    several = "".join(mode[1:] for mode in sliced.values() if sizes[mode[-1]] > 1)
    return Row(tuple(groups), whole[0], whole[1], directions or tap, sizes, several)
