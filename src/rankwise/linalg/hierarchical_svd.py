"""Hierarchical singular value decomposition of a tensor: truncation from the leaves of a dimension tree to its root.

A binary tree merges the modes of `X` two by two. Each edge cuts the modes into two sets, and has a rank. First every
leaf gets a basis, the leading left singular vectors of its unfolding; then every inner node one for the product of its
children's bases, from the core that is left. The two sides of the root have the same unfolding, which is truncated
once. Each step is an orthogonal projection of the one before it, so the squared errors of the steps add up, and none is
above that of the best tensor of these ranks: with d modes there are 2 d - 3 edges, and

    ||X - X_H||_F <= sqrt(2 d - 3) ||X - X_best||_F.

Source: Grasedyck, "Hierarchical Singular Value Decomposition of Tensors", SIAM J. Matrix Anal. Appl. 31(4), 2010.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .splitting import split


def hierarchical(
    X: Tensor, sides: tuple[int, int], leaf_ranks: Sequence[int], inner_ranks: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Leaves and transfer tensors of a tree whose root has two sides, each of which merges its modes left to right.

    Args:
        X: d >= 3 modes, those of the first side first, float64.
        sides: numbers of modes on either side of the root.
        leaf_ranks: of the d leaves.
        inner_ranks: of the edges above merged modes, of the first side, then of the second, then that of the root; a
            side of one mode has its leaf for an edge of the root.

    Returns:
        Leaves (n_k, r_k) with orthonormal columns, and transfer tensors (left, right, parent) of the first side, then
        of the second. The root's own matrix is part of the last one.

    Example:
        >>> leaves, transfers = hierarchical(torch.zeros(4, 5, 6, 7).double(), (2, 2), (2, 3, 4, 5), (6,))
        >>> [tuple(tensor.shape) for tensor in (*leaves, *transfers)]
        [(4, 2), (5, 3), (6, 4), (7, 5), (2, 3, 6), (4, 5, 6)]
    """
    leaves = [split(X.movedim(mode, 0).flatten(1), rank)[0] for mode, rank in enumerate(leaf_ranks)]
    core = X
    for leaf in leaves:
        core = torch.tensordot(core, leaf, dims=([0], [0]))  # the new mode goes last: all are in order in the end
    ranks = list(inner_ranks)
    transfers = []
    for count in sides:  # merge the first modes down to two, then move them behind those of the other side
        merged = []
        for _ in range(count - 2):
            left, right, *others = core.shape
            basis, core = split(core.flatten(0, 1).flatten(1), rank := ranks.pop(0))
            core = core.reshape(rank, *others)
            merged.append(basis.reshape(left, right, rank))
        core = core.movedim(list(range(min(count, 2))), list(range(-min(count, 2), 0)))
        transfers.append(merged)
    first, second = (min(count, 2) for count in sides)
    if first == 1:
        transfers[1].append(core.movedim(0, -1))
    elif second == 1:
        transfers[0].append(core)
    else:
        top, rest = split(core.flatten(0, 1).flatten(1), ranks.pop(0))
        transfers[0].append(top.reshape(*core.shape[:2], -1))
        transfers[1].append(rest.reshape(-1, *core.shape[2:]).movedim(0, -1))
    return leaves, [*transfers[0], *transfers[1]]
