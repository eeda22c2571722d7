"""Semi-tensor rows compared with the semi-tensor product of the paper, `A (B kron I_t)`, written with numpy."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from rankwise import Site
from rankwise.formats import FORMATS, Factors, get_format
from rankwise.formats.row import single
from rankwise.formats.shape import Shape
from rankwise.formats.weights import weight_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def conv(outputs: int = 6, channels: int = 12, kernel: tuple[int, int] = (3, 2)) -> Site:
    return Site(name="conv", kind="conv2d", weight_shape=(outputs, channels, *kernel))


def linear(outputs: int = 12, inputs: int = 18) -> Site:
    return Site(name="fc", kind="linear", weight_shape=(outputs, inputs))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(format: str, site: Site, ranks: tuple[int, ...]) -> Factors:
    return get_format(format).fit(site, random(*site.weight_shape), weight_metrics(site), ranks)


def cores(factors: Factors, *orders: str) -> list[np.ndarray]:
    """The factors of one group, each with its letters in the given order."""
    by_letters = {frozenset(name.partition("_G")[2]): (name, tensor[0]) for name, tensor in factors.tensors.items()}
    found = [by_letters[frozenset(order)] for order in orders]
    assert len(by_letters) == len(orders)
    return [
        torch.einsum(f"{name.partition('_G')[2]}->{order}", tensor).numpy()
        for order, (name, tensor) in zip(orders, found, strict=True)
    ]


def product(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """`A (B kron I_t)` of A (m x n t) and B (n x q)."""
    t, rest = divmod(A.shape[1], B.shape[0])
    assert rest == 0
    return A @ np.kron(B, np.eye(t))


def test_with_one_slice_the_semi_tensor_product_is_the_matrix_product() -> None:
    A, B = random(4, 6).numpy(), random(6, 5).numpy()
    np.testing.assert_allclose(product(A, B), A @ B)
    C = random(3, 5).numpy()
    np.testing.assert_allclose(product(A, C), np.einsum("mns,nq->mqs", A.reshape(4, 3, 2), C).reshape(4, 10))


@pytest.mark.parametrize("slices", [2, 3, 6, 9])
def test_a_matrix_of_two_cores_is_one_semi_tensor_product(slices: int) -> None:
    site, rank = linear(), min(2, 18 // slices)
    factors = fitted(f"stt:slices={slices},cores=all", site, (rank,))
    A, D = cores(factors, "tas", "ac")
    assert (A.shape, D.shape) == ((12, rank, slices), (rank, 18 // slices))
    np.testing.assert_allclose(factors.dense().numpy(), product(A.reshape(12, -1), D), atol=1e-12)


def test_every_product_of_a_train_is_a_semi_tensor_product() -> None:
    """`G_1 |x G_2 |x G_3 |x G_4`, each product with the slices of the next mode, in the order of the modes."""
    site = linear(12, 24)
    factors = fitted("stt:cores=all,outputs=3x4,inputs=4x6", site, (2, 5, 2))
    first, second, third, fourth = cores(factors, "tam", "aubn", "bidl", "dj")
    assert (first.shape, second.shape) == ((3, 2, 2), (2, 2, 5, 2))
    assert (third.shape, fourth.shape) == ((5, 2, 2, 2), (2, 3))
    one = product(first.reshape(3, -1), second.reshape(2, -1)).reshape(3, 2, 5, 2, 2)  # t, u, (b, n), m
    one = one.transpose(0, 1, 4, 2, 3).reshape(12, -1)  # (t, u, m), (b, n)
    two = product(one, third.reshape(5, -1)).reshape(12, 2, 2, 2, 2)  # T, i, (d, l), n
    two = two.transpose(0, 1, 4, 2, 3).reshape(48, -1)  # (T, i, n), (d, l)
    W = product(two, fourth).reshape(12, 24)  # (T, i, n), (j, l)
    np.testing.assert_allclose(factors.dense().numpy(), W, atol=1e-12)


def test_every_product_of_a_ring() -> None:
    factors = fitted("str:slices=3,cores=all,outputs=2x3,inputs=3x6", linear(6, 18), (2, 2, 3, 2))
    first, second, third, fourth = cores(factors, "xtam", "aubn", "bidl", "djx")
    W = np.zeros((2, 1, 3, 1, 3, 2, 3))
    for t, u, m, i, n, j, low in np.ndindex(W.shape):
        chain = first[:, t, :, m] @ second[:, u, :, n] @ third[:, i, :, low] @ fourth[:, j]
        W[t, u, m, i, n, j, low] = np.trace(chain)
    np.testing.assert_allclose(factors.dense().numpy(), W.reshape(6, 18), atol=1e-12)


@pytest.mark.parametrize("slices", [2, 3])
def test_outer_cores_are_products_from_both_sides(slices: int) -> None:
    """`(A kron I_u) G (D kron I_s)`."""
    site = linear()
    factors = fitted(f"stt:slices={slices}", site, (3, 4))
    A, G, D = cores(factors, "ta", "ausb", "bc")
    G = G.transpose(0, 1, 3, 2).reshape(3 * slices, 4 * slices)  # (a, u), (b, s)
    W = np.kron(A, np.eye(slices)) @ product(G, D)
    np.testing.assert_allclose(factors.dense().numpy(), W, atol=1e-12)


def test_outer_cores_of_a_convolution() -> None:
    factors = fitted("stt:slices=3", conv(), (2, 4, 3))
    A, G, F, D = cores(factors, "ta", "auhb", "bwsd", "dc")
    W = np.zeros((6, 12, 3, 2))
    for T, C, h, w in np.ndindex(W.shape):
        W[T, C, h, w] = A[T // 3] @ G[:, T % 3, h] @ F[:, w, C % 3] @ D[:, C // 3]
    np.testing.assert_allclose(factors.dense().numpy(), W, atol=1e-12)


def test_all_cores_of_a_convolution_with_split_channels() -> None:
    factors = fitted("stt:cores=all,outputs=3x2,inputs=2x6", conv(), (2, 4, 5, 4, 3))
    first, second, rows, columns, fifth, last = cores(factors, "tam", "aub", "bhd", "dwen", "eifl", "fj")
    W = np.zeros((6, 12, 3, 2))
    for T, C, h, w in np.ndindex(W.shape):
        t, m, i, j = T // 2, T % 2, C // 6, C % 6
        head = first[t, :, m] @ second[:, 0] @ rows[:, h] @ columns[:, w, :, i % 2]
        W[T, C, h, w] = head @ fifth[:, 0, :, j % 2] @ last[:, j // 2]
    np.testing.assert_allclose(factors.dense().numpy(), W, atol=1e-12)


@pytest.mark.parametrize(
    "format", ["stt:slices=3", "stt:slices=3,cores=all", pytest.param("str:slices=3", marks=pytest.mark.slow)]
)
def test_more_is_never_worse(format: str) -> None:
    site = conv()
    limits = get_format(format).limits(site)
    first = int(format.startswith("str"))  # a ring whose closing bond is 1 is a train
    errors = [
        fitted(format, site, (*(1,) * first, *(max(1, round(share * limit)) for limit in limits[first:]))).error
        for share in (0.25, 0.5, 0.75, 1)
    ]
    assert all(after < before for before, after in pairwise(errors))
    assert errors[-1] < 1e-12


def test_cores_shrink_by_the_slices() -> None:
    """With the same bonds the outer factors have 1/t of the numbers."""
    site, ranks = conv(48, 48, (3, 3)), (4, 6, 4)
    params = {
        name: get_format(name).cost(site, ranks, bias=False).params
        for name in ("tt", "stt", "stt:slices=4", "stt:slices=16", "stt:slices=4,cores=all")
    }
    inner = 4 * 3 * 6 + 6 * 3 * 4
    assert params == {
        "tt": 2 * 48 * 4 + inner,
        "stt": 2 * 24 * 4 + 2 * inner,
        "stt:slices=4": 2 * 12 * 4 + 4 * inner,
        "stt:slices=16": 2 * 3 * 4 + 16 * inner,
        "stt:slices=4,cores=all": 48 * 4 + 12 * 4 + 4 * 3 * 6 + 4 * 6 * 3 * 4,
    }


@pytest.mark.parametrize(
    "format, site, reason",
    [
        ("stt", linear(7, 9), "stt needs an even number of inputs or outputs"),
        ("stt:slices=5", linear(), "stt:slices=5 needs a number, divided by 5, of inputs or outputs"),
        ("stt:slices=4,cores=all", linear(12, 18), "stt:slices=4,cores=all needs a number, divided by 4"),
        ("str:cores=all", linear(), "str:cores=all closes a ring of at least three factors, and here are two"),
        ("stt:outputs=5x2", linear(), "reads 10 outputs as 5 x 2, and here are 12"),
        ("stt:outputs=2x2x3x1", linear(), "takes at most 3 modes of each side here"),
    ],
)
def test_what_a_row_cannot_have(format: str, site: Site, reason: str) -> None:
    found = get_format(format).refuses(site)
    assert found is not None
    assert re.search(rf"{re.escape(reason)}.*; use svd$", found), found


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("kernel", [(), (1,), (3,), (3, 3), (3, 2, 2)])
def test_no_letter_stands_for_two_things(kernel: tuple[int, ...], every: bool) -> None:
    """Modes, slices and bonds of the longest rows, and of those with one mode on a side."""
    shape = Shape(2, 16, 16, kernel)
    for outputs in (None, (16,), (4, 4), (4, 2, 2)):
        for inputs in (None, (16,), (4, 4), (2, 4, 2)):
            row = single(shape, outputs, inputs, 2, every=every)
            modes = row.outputs + row.channels + row.spatial
            assert sorted("".join(row.groups)) == sorted(modes)
            letters = "gx" + modes + row.bonds
            assert len(set(letters)) == len(letters)
            assert len(row.bonds) == len(row.groups) - 1
            assert np.prod([row.sizes[letter] for letter in row.outputs]) == 16
            assert np.prod([row.sizes[letter] for letter in row.channels]) == 16


def test_defaults_are_those_of_earlier_versions() -> None:
    for name in ("stt", "str"):
        for site in (linear(), conv()):
            assert FORMATS[name].limits(site) == get_format(f"{name}:slices=2,cores=outer").limits(site)
