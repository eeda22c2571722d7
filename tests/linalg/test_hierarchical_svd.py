"""Truncation from the leaves to the root, compared with the definition of the form and the bounds of its paper."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from rankwise.linalg.hierarchical_svd import hierarchical

# Sizes of the modes, and how many are on the first side of the root.
TREES = [
    ((4, 5, 3), 2),
    ((4, 5, 3), 1),
    ((3, 4, 3, 5), 2),
    ((3, 4, 3, 5), 1),
    ((3, 4, 3, 5), 3),
    ((3, 2, 4, 2, 3), 3),
    ((2, 3, 2, 3, 2, 3), 3),
]
each_tree = pytest.mark.parametrize("shape, first", TREES)


def edges(count: int, first: int) -> list[tuple[int, ...]]:
    """The modes below each edge: leaves, merged modes of either side, the root once."""
    sides = tuple(range(first)), tuple(range(first, count))
    merged = [side[:length] for side in sides for length in range(2, len(side))]
    root = [sides[0]] if min(first, count - first) > 1 else []
    return [*((mode,) for mode in range(count)), *merged, *root]


def unfolding(X: Tensor, below: Sequence[int]) -> np.ndarray:
    beyond = [mode for mode in range(X.dim()) if mode not in below]
    return X.permute(*below, *beyond).reshape(math.prod(X.shape[mode] for mode in below), -1).numpy()


def tail(X: Tensor, below: Sequence[int], rank: int) -> float:
    """The squared error of the best matrix of this rank."""
    return float((np.linalg.svd(unfolding(X, below), compute_uv=False)[rank:] ** 2).sum())


def composed(leaves: Sequence[Tensor], transfers: Sequence[Tensor], first: int) -> np.ndarray:
    """`U_parent = (U_left kron U_right) B` from the leaves to the root, where both sides meet."""
    rest, frames = list(transfers), []
    for side in (leaves[:first], leaves[first:]):
        frame = side[0].numpy()
        for leaf in side[1:]:
            B = rest.pop(0).numpy()
            frame = np.kron(frame, leaf.numpy()) @ B.reshape(-1, B.shape[2])
        frames.append(frame)
    return frames[0] @ frames[1].T


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full(shape: Sequence[int], first: int) -> list[int]:
    sizes = [math.prod(shape[mode] for mode in below) for below in edges(len(shape), first)]
    return [min(size, math.prod(shape) // size) for size in sizes]


def halved(shape: Sequence[int], first: int) -> list[int]:
    return [max(1, rank // 2) for rank in full(shape, first)]


@each_tree
def test_full_ranks_are_exact(shape: tuple[int, ...], first: int) -> None:
    X, ranks = random(*shape), full(shape, first)
    leaves, transfers = hierarchical(X, (first, len(shape) - first), ranks[: len(shape)], ranks[len(shape) :])
    np.testing.assert_allclose(composed(leaves, transfers, first), unfolding(X, range(first)), atol=1e-12)


@each_tree
def test_squared_errors_of_the_edges_bound_that_of_the_tensor(shape: tuple[int, ...], first: int) -> None:
    for seed in range(4):
        X, ranks = random(*shape, seed=seed), halved(shape, first)
        leaves, transfers = hierarchical(X, (first, len(shape) - first), ranks[: len(shape)], ranks[len(shape) :])
        for leaf in leaves:
            np.testing.assert_allclose(leaf.mT @ leaf, np.eye(leaf.shape[1]), atol=1e-12)
        error = float(((composed(leaves, transfers, first) - unfolding(X, range(first))) ** 2).sum())
        tails = [tail(X, below, rank) for below, rank in zip(edges(len(shape), first), ranks, strict=True)]
        assert len(tails) == 2 * len(shape) - 3
        assert max(tails) - 1e-9 <= error <= sum(tails) + 1e-9


@each_tree
def test_a_tensor_of_the_form_is_recovered(shape: tuple[int, ...], first: int) -> None:
    ranks = halved(shape, first)
    leaves, transfers = hierarchical(
        random(*shape), (first, len(shape) - first), ranks[: len(shape)], ranks[len(shape) :]
    )
    leaves = [random(*leaf.shape, seed=n) for n, leaf in enumerate(leaves)]
    transfers = [random(*transfer.shape, seed=10 + n) for n, transfer in enumerate(transfers)]
    planted = composed(leaves, transfers, first)
    found = hierarchical(
        torch.from_numpy(planted).reshape(shape),
        (first, len(shape) - first),
        ranks[: len(shape)],
        ranks[len(shape) :],
    )
    np.testing.assert_allclose(composed(*found, first), planted, atol=1e-10 * np.abs(planted).max())


def test_ranks_beyond_what_children_span_are_zeros() -> None:
    leaves, transfers = hierarchical(random(4, 5, 4, 5), (2, 2), (1, 2, 2, 1), (6,))
    assert [tuple(part.shape) for part in transfers] == [(1, 2, 6), (2, 1, 6)]
    assert int(torch.linalg.matrix_rank(transfers[0].reshape(2, 6))) == 2
    assert len(leaves) == 4
