"""Trains and rings with modes that the user chose, compared with sums written out."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from rankwise import Site
from rankwise.formats import Factors, get_format
from rankwise.formats.row import paired
from rankwise.formats.shape import Shape
from rankwise.formats.weights import weight_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def conv(outputs: int = 6, channels: int = 8, kernel: tuple[int, int] = (3, 2)) -> Site:
    return Site(name="conv", kind="conv2d", weight_shape=(outputs, channels, *kernel))


def linear(outputs: int = 24, inputs: int = 30) -> Site:
    return Site(name="fc", kind="linear", weight_shape=(outputs, inputs))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(format: str, site: Site, ranks: tuple[int, ...]) -> tuple[Factors, dict[frozenset[str], tuple[str, Tensor]]]:
    factors = get_format(format).fit(site, random(*site.weight_shape), weight_metrics(site), ranks)
    named = [(name.partition("_G")[2], tensor[0]) for name, tensor in factors.tensors.items()]
    return factors, {frozenset(letters): (letters, tensor) for letters, tensor in named}


def arranged(part: tuple[str, Tensor], order: str) -> np.ndarray:
    return torch.einsum(f"{part[0]}->{order}", part[1]).numpy()


def test_a_matrix_with_modes_of_ones_own() -> None:
    """`W[(t u v), (i j k)] = G1[t, i] G2[u, j] G3[v, k]`, each a matrix."""
    site = linear()
    factors, parts = fitted("tt:outputs=2x4x3,inputs=5x2x3", site, (3, 4))
    first, second, third = (arranged(parts[frozenset(order)], order) for order in ("tia", "aujb", "bvk"))
    assert (first.shape, second.shape, third.shape) == ((2, 5, 3), (3, 4, 2, 4), (4, 3, 3))
    W = np.zeros((24, 30))
    for T, C in np.ndindex(W.shape):
        (t, u, v), (i, j, k) = np.unravel_index(T, (2, 4, 3)), np.unravel_index(C, (5, 2, 3))
        W[T, C] = first[t, i] @ second[:, u, j] @ third[:, v, k]
    np.testing.assert_allclose(factors.dense().numpy(), W, atol=1e-12)
    params = 2 * 5 * 3 + 3 * 4 * 2 * 4 + 4 * 3 * 3
    assert get_format("tt:outputs=2x4x3,inputs=5x2x3").cost(site, (3, 4), False).params == params


def test_a_ring_of_two_modes_more() -> None:
    factors, parts = fitted("tr:outputs=2x2x3x2,inputs=5x2x3x1", linear(), (2, 3, 2, 2))
    letters = ("xtia", "aujb", "bvkd", "dmlx")
    cores = [arranged(parts[frozenset(order)], order) for order in letters]
    W = np.zeros((24, 30))
    for T, C in np.ndindex(W.shape):
        rows, columns = np.unravel_index(T, (2, 2, 3, 2)), np.unravel_index(C, (5, 2, 3, 1))
        chain = np.eye(2)
        for core, row, column in zip(cores, rows, columns, strict=True):
            chain = chain @ core[:, row, column]
        W[T, C] = np.trace(chain)
    np.testing.assert_allclose(factors.dense().numpy(), W, atol=1e-12)


def test_a_convolution_with_modes_of_ones_own() -> None:
    """Every mode has a core: `W[(t u), (i j), h, w] = G1[t] G2[u] G3[h] G4[w] G5[i] G6[j]`."""
    factors, parts = fitted("tt:outputs=3x2,inputs=2x4", conv(), (2, 4, 5, 4, 3))
    letters = ("ta", "aub", "bhd", "dwe", "eif", "fj")
    cores = [arranged(parts[frozenset(order)], order) for order in letters]
    W = np.zeros((6, 8, 3, 2))
    for T, C, h, w in np.ndindex(W.shape):
        chain = cores[0][T // 2]
        for core, place in zip(cores[1:], (T % 2, h, w, C // 4, C % 4), strict=True):
            chain = chain @ core[:, place]
        W[T, C, h, w] = chain
    np.testing.assert_allclose(factors.dense().numpy(), W, atol=1e-12)


def test_splits_decide_what_is_exact() -> None:
    """A matrix that is a Kronecker product of matrices of these sizes has bonds of one, in no other split."""
    A, B = random(4, 6, seed=1), random(6, 5, seed=2)
    site, W = linear(), torch.kron(A, B)
    right, wrong = (get_format(f"tt:outputs={t},inputs={c}") for t, c in (("4x6", "6x5"), ("6x4", "5x6")))
    assert right.fit(site, W, weight_metrics(site), (1,)).error < 1e-12
    assert wrong.fit(site, W, weight_metrics(site), (1,)).error > 0.1


def test_a_side_that_is_not_given_is_split_evenly() -> None:
    assert (
        paired(Shape(1, 64, 96, ()), (2, 4, 8), None).sizes == paired(Shape(1, 64, 96, ()), (2, 4, 8), (4, 4, 6)).sizes
    )
    assert paired(Shape(1, 64, 96, ()), None, None).sizes == paired(Shape(1, 64, 96, ()), (4, 4, 4), (4, 4, 6)).sizes


@pytest.mark.parametrize(
    "format, site, reason",
    [
        ("tt:outputs=8x16x6,inputs=4x16x12", linear(), "reads 768 outputs as 8 x 16 x 6, and here are 24"),
        ("tt:inputs=5x5", linear(), "reads 25 inputs as 5 x 5, and here are 30"),
        ("tt:outputs=4x6,inputs=5x2x3", linear(), "pairs output and input modes, and needs as many of both"),
        ("tt:outputs=3x2x1x1", conv(), "takes at most 3 modes of each side here"),
        ("tr:outputs=4x6", linear(), "closes a ring of at least three factors, and here are two"),
        ("tt:outputs=24", linear(), "needs more inputs or outputs to split"),
    ],
)
def test_what_a_train_cannot_have(format: str, site: Site, reason: str) -> None:
    found = get_format(format).refuses(site)
    assert found is not None
    assert re.match(rf"{re.escape(format)} {re.escape(reason)}; use svd$", found), found


def test_groups_are_named_where_a_split_does_not_suit() -> None:
    site = Site(name="conv", kind="conv2d", weight_shape=(12, 4, 1, 1), groups=2)
    assert get_format("tt:outputs=3x2,inputs=2x2").refuses(site) is None
    assert "reads 12 outputs as 3 x 4, and here are 6 in each group" in str(get_format("tt:outputs=3x4").refuses(site))
