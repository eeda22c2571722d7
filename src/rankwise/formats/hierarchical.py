"""Hierarchical Tucker: bases of all modes, joined two by two by the transfer tensors of a binary tree.

Letters: see `dimension_tree`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linalg.hierarchical_svd import hierarchical
from ..network.site import Site
from .base import Ranks
from .dimension_tree import Tree
from .ladders import capped, proportional
from .multilinear import Multilinear
from .network import Network
from .row import paired
from .shape import Modes, Shape

# Ranks that curves try: of bonds below which there are only taps, as a share of these taps; and of other inner bonds,
# relative to the mean rank of outputs and channels.
SHARED = (0.34, 0.67)
INNER = (0.6, 1.0)


@dataclass(frozen=True, kw_only=True)
class HierarchicalTucker(Multilinear):
    """`W[t, c, h, w] = sum A[a, t] P[a, d, f] H[d, h] Q[b, e, f] E[e, w] B[b, c]`: leaves and transfer tensors.

    A binary tree joins outputs with rows and channels with columns, so that each layer narrows what the next one reads.
    A matrix: `W[t u v, i j k] = sum A[a, t, i] B[b, u, j] M[a, b, e] E[e, v, k]`. Ranks are those of the leaves, then
    of the inner bonds. The root has no factor of its own: its matrix is part of a transfer tensor beside it.

    Args:
        tree: leaves on either side of the root, "th/cw" by default; see `rankwise formats ht`. Of a matrix "12/3", or
            as many modes on either side.
        outputs: sizes of the output modes of a matrix, by default three, as equal as possible.
        inputs: sizes of the input modes, likewise.

    Source: Hackbusch, Kühn, "A New Scheme for the Tensor Representation", 2009; Grasedyck, "Hierarchical Singular Value
    Decomposition of Tensors", 2010; Yin, Liao, Liu, Wang, Yuan, "Compressing Recurrent Neural Networks Using
    Hierarchical Tucker Tensor Decomposition", 2020, arXiv 2005.04366.
    """

    tree: str | None = None
    outputs: Modes | None = None
    inputs: Modes | None = None

    name = "ht"
    summary = "hierarchical Tucker: bases of outputs, channels, rows and columns, joined two by two by small tensors"
    use = "convolutions whose channels, rows and columns are all narrow; matrices at few parameters, not MACs"

    def unfit(self, site: Site) -> str | None:
        shape = Shape.of_site(site)
        split = [modes for modes in (self.outputs, self.inputs) if modes is not None]
        if shape.taps > 1 and split:
            return f"{self.name} splits matrices, and here is a kernel; use svd"
        if why := shape.unlike(self.outputs, self.inputs):
            return f"{self.name} {why}; use svd"
        if len(set(map(len, split))) > 1:
            return f"{self.name} pairs output and input modes, and needs as many of both; use svd"
        if shape.taps == 1 and (1 in (shape.outputs, shape.channels) or any(len(modes) < 3 for modes in split)):
            return f"{self.name} needs more inputs and outputs to split, into three modes at least; use svd"
        leaves = self.leaves(shape)
        if self.tree is not None and sorted(self.tree.replace("/", "")) != sorted(leaves):
            return f"{self.name} has a tree of other modes than {', '.join(leaves)}; use svd"
        return None

    def leaves(self, shape: Shape) -> dict[str, str]:
        """The modes of each leaf, by the name that it has in `tree`."""
        if shape.taps == 1:
            groups = paired(shape, self.outputs, self.inputs).groups
            return {str(number): group for number, group in enumerate(groups, start=1)}
        if self.tree is not None:
            return {letter: letter for letter in "tc" + ("q" if "q" in self.tree else shape.directions)}
        # A direction of one tap has no leaf of its own: another one strides and pads in it too.
        several = [letter for letter, size in zip(shape.directions, shape.kernel, strict=True) if size > 1]
        single = [letter for letter in shape.directions if letter not in several]
        several[-1] = "".join(sorted([*single, several[-1]], key=shape.directions.index))
        return {leaf[0]: leaf for leaf in ("t", "c", *several)}

    def sides(self, shape: Shape) -> tuple[tuple[str, ...], ...]:
        """The leaves on either side of the root."""
        leaves = self.leaves(shape)
        names = "".join(leaves)
        if self.tree is not None:
            sides = self.tree.split("/")
        elif shape.taps > 1:
            sides = [names[0] + names[2:-1], names[1] + names[-1]]
        else:
            sides = [names[: (len(names) + 1) // 2], names[(len(names) + 1) // 2 :]]
        return tuple(tuple(leaves[name] for name in side) for side in sides)

    def tree_of(self, shape: Shape) -> Tree:
        """The dimension tree of a weight."""
        first, second = self.sides(shape)
        if shape.taps == 1:
            row = paired(shape, self.outputs, self.inputs)
            return Tree((first, second), row.outputs, row.channels, row.spatial, row.sizes)
        sizes = {"g": shape.groups, "t": shape.outputs, "c": shape.channels, "q": shape.taps}
        sizes |= dict(zip(shape.directions, shape.kernel, strict=True))
        spatial = "q" if "q" in first + second else shape.directions
        return Tree((first, second), "t", "c", spatial, sizes)

    def form(self, shape: Shape, count: int) -> HierarchicalTucker:
        """This format; for the three ranks that kernels had in plans of earlier versions, with all taps in one leaf."""
        earlier = self.tree is None and shape.taps > 1 and count == 3 != len(self.largest(shape))
        return TAPS_IN_ONE if earlier else self

    def network(self, shape: Shape, ranks: Ranks) -> Network:
        tree = self.form(shape, len(ranks)).tree_of(shape)
        sizes = {**tree.sizes, **dict(zip(tree.bonds, ranks, strict=True))}
        return Network(tree.factors, tree.channels, tree.outputs, tree.spatial, sizes, shape.kernel)

    def check(self, site: Site, ranks: Ranks) -> Ranks:
        form = self.form(Shape.of_site(site), len(ranks))
        return super().check(site, ranks) if form is self else form.check(site, ranks)

    def largest(self, shape: Shape) -> Ranks:
        return self.tree_of(shape).limits()

    def ladders(self, shape: Shape, step: int) -> list[list[Ranks]]:
        tree, limits = self.tree_of(shape), self.largest(shape)
        if shape.taps == 1:  # a layer's channels are products of ranks and modes
            return [(proportional if len(limits) == 3 else capped)(limits, 1)]
        others = list(zip(tree.bonds, limits, strict=True))[2:]

        def rank(bond: str, limit: int, mean: float, shared: float, inner: float) -> int:
            if len(limits) > 3 and len(tree.below[bond]) == 1:
                return limit  # a direction with a leaf of its own keeps all its taps
            if tree.holds_taps_only(bond):
                return max(1, round(shared * limit))
            return min(limit, max(1, round(inner * mean / step)) * step)

        families = [
            tuple(
                (*ends, *(rank(*other, sum(ends) / 2, *shares) for other in others))
                for ends in proportional(limits[:2], step)
            )
            for shares in zip(SHARED, INNER, strict=True)
        ]
        return [list(family) for family in dict.fromkeys(families)]

    def starts(self, network: Network, X: Tensor) -> Iterator[list[Tensor]]:
        shape = Shape(1, network.count(network.outputs), network.count(network.channels), network.kernel_size)
        in_one = shape.taps > 1 and network.spatial == "q"
        tree = (TAPS_IN_ONE if in_one and self.tree is None else self).tree_of(shape)
        first, second = tree.sides
        leaves = (*first, *second)
        modes = torch.einsum(f"{network.equation.kernel}->{''.join(leaves)}", X)
        modes = modes.reshape([network.count(leaf) for leaf in leaves])
        bonds = {below: bond for bond, below in tree.below.items()}
        inner = [bond for bond, below in tree.below.items() if len(below) > 1]
        bases, transfers = hierarchical(
            modes,
            (len(first), len(second)),
            [network.sizes[bonds[leaf,]] for leaf in leaves],
            [network.sizes[bond] for bond in inner],
        )
        made = {leaf + bonds[leaf,]: basis for leaf, basis in zip(leaves, bases, strict=True)}
        made |= {"".join(letters): transfer for letters, transfer in zip(tree.transfers, transfers, strict=True)}
        by_letters = {frozenset(own): (own, part.reshape(network.shape(own))) for own, part in made.items()}
        owned = [(*by_letters[frozenset(letters)], letters) for letters in network.factors]
        yield [torch.einsum(f"{own}->{letters}", part) for own, part, letters in owned]


# The tree of earlier versions.
TAPS_IN_ONE = HierarchicalTucker(tree="tc/q")
