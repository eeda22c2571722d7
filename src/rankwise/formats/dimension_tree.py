"""Binary trees of the modes of a weight, and the factors of a tensor network with such a tree.

Letters: t outputs, c channels, z, h, w planes, rows and columns of the kernel, q all its taps; of a split matrix
t, u, v, m, n output modes and i, j, k, l, p input modes; a, b, d, e, y bonds of leaves, f, r bonds of inner nodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from .base import Ranks

# Bonds of the leaves by their first mode, and of inner nodes.
LEAF_BONDS = {"t": "a", "c": "b", "z": "y", "h": "d", "w": "e", "q": "e", "u": "b", "v": "e", "m": "d", "n": "y"}
INNER_BONDS = "fr"


@dataclass(frozen=True)
class Tree:
    """A dimension tree whose root has two sides, each of which merges its leaves from left to right.

    Attributes:
        sides: modes of the leaves on either side of the root.
        outputs, channels, spatial: modes of outputs, channels and taps.
        sizes: of all modes.
    """

    sides: tuple[tuple[str, ...], tuple[str, ...]]
    outputs: str
    channels: str
    spatial: str
    sizes: Mapping[str, int]

    @cached_property
    def below(self) -> dict[str, tuple[str, ...]]:
        """The leaves below each bond: of leaves in the order of the modes, then of inner nodes."""
        modes = self.outputs + self.channels + self.spatial
        leaves = sorted(chain(*self.sides), key=lambda leaf: modes.index(leaf[0]))
        inner = [side[:count] for side in self.sides for count in range(2, len(side))]
        if min(map(len, self.sides)) > 1:
            inner.append(self.sides[0])
        return {LEAF_BONDS[leaf[0]]: (leaf,) for leaf in leaves} | dict(zip(INNER_BONDS, inner, strict=False))

    @cached_property
    def bonds(self) -> str:
        return "".join(self.below)

    @cached_property
    def transfers(self) -> tuple[tuple[str, str, str], ...]:
        """Bonds of each transfer tensor, left, right and parent, of the first side, then of the second."""
        bond = {leaves: letter for letter, leaves in self.below.items()}
        root = next(bond[side] for side in self.sides if side in bond)  # both sides have the same one
        return tuple(
            (bond[side[: count - 1]], bond[side[count - 1 : count]], bond.get(side[:count], root))
            for side in self.sides
            for count in range(2, len(side) + 1)
        )

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """Letters of the factors in the order of their layers, those of the outputs last.

        A factor comes after all those that hand inputs on to it, and before those that only hold taps.
        """
        leaves = [bond + leaves[0] for bond, leaves in self.below.items() if len(leaves) == 1]
        factors = [*leaves, *("".join(sorted(transfer)) for transfer in self.transfers)]

        def ordered(letters: str, parent: str) -> list[str]:
            around = [
                ordered(other, bond)
                for bond in reversed(letters)
                if bond in self.bonds and bond != parent
                for other in factors
                if bond in other and other != letters
            ]
            reading = [part for part in around if set("".join(part)) & set(self.channels)]
            others = [part for part in around if part not in reading]
            return [*chain(*reading), letters, *chain(*others)]

        return tuple(ordered(leaves[0], ""))

    def cut(self, bond: str) -> tuple[int, int]:
        """Numbers of the weight's entries on either side of a bond."""
        below, all_leaves = self.below[bond], chain(*self.sides)
        return self.size(*below), self.size(*(leaf for leaf in all_leaves if leaf not in below))

    def size(self, *leaves: str) -> int:
        """Product of the sizes of some leaves."""
        return math.prod(self.sizes[letter] for leaf in leaves for letter in leaf)

    def limits(self) -> Ranks:
        """Ranks at which the form is exact."""
        return tuple(min(self.cut(bond)) for bond in self.bonds)

    def holds_taps_only(self, bond: str) -> bool:
        """Whether there is nothing but taps below a bond, or beyond it."""
        below = "".join(self.below[bond])
        beyond = set("".join(chain(*self.sides))) - set(below)
        return any(set(letters) <= set(self.spatial) for letters in (below, beyond))
