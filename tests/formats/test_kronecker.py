"""Kronecker products compared with numpy's, with kernels for one factor or both, and as two convolutions."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rankwise import Site, find
from rankwise.formats import Factors, get_format
from rankwise.formats.weights import site_bias, site_weight, weight_metrics, write

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(outputs: int, channels: int, *kernel: int) -> Site:
    kind = {1: "conv1d", 2: "conv2d", 3: "conv3d"}[len(kernel)]
    return Site(name="conv", kind=kind, weight_shape=(outputs, channels, *kernel))


def fitted(format: str, site: Site, weight: Tensor, rank: int) -> Factors:
    return get_format(format).fit(site, weight, weight_metrics(site), (rank,))


def both(factors: Factors) -> tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]:
    """`A` and `B` of one group, each with its letters, terms first."""
    (second, B), (first, A) = ((name.partition("_G")[2], tensor[0]) for name, tensor in factors.tensors.items())
    return (first, A.numpy()), (second, B.numpy())


@pytest.mark.parametrize(
    "format", ["kronecker", "kronecker:outputs=3x4,inputs=2x9", "kronecker:outputs=6x2,inputs=9x2"]
)
def test_a_matrix_is_a_sum_of_kronecker_products(format: str) -> None:
    site = Site(name="fc", kind="linear", weight_shape=(12, 18))
    factors = fitted(format, site, random(12, 18), 3)
    (_, A), (_, B) = both(factors)
    W = sum(np.kron(a, b) for a, b in zip(A, B.reshape(3, *B.shape[1:]), strict=True))
    np.testing.assert_allclose(factors.dense().numpy(), W, atol=1e-12)
    if format != "kronecker":
        t, u, c, s = map(int, re.findall(r"\d+", format))
        assert (A.shape, B.shape) == ((3, t, c), (3, u, s))


@pytest.mark.parametrize(
    "kernel, first, second", [("3x3", (3, 3), (3, 2)), ("9x1", (9, 1), (1, 6)), ("1x6", (1, 6), (9, 1))]
)
def test_kernels_of_both_factors_multiply(kernel: str, first: tuple[int, int], second: tuple[int, int]) -> None:
    """`W[t u, c s, h y, w p]` as the paper has it: every mode of A is split by that of B."""
    site = conv(6, 4, 9, 6)
    factors = fitted(f"kronecker:kernel={kernel},outputs=2x3,inputs=2x2", site, random(6, 4, 9, 6), 2)
    (_, A), (_, B) = both(factors)
    A, B = A.reshape(2, 2, 2, *first), B.reshape(2, 3, 2, *second)
    W = np.zeros((6, 4, 9, 6))
    for T, C, H, V in np.ndindex(W.shape):
        coarse = T // 3, C // 2, H // second[0], V // second[1]
        fine = T % 3, C % 2, H % second[0], V % second[1]
        W[T, C, H, V] = sum(A[(r, *coarse)] * B[(r, *fine)] for r in range(2))
    np.testing.assert_allclose(factors.dense().numpy(), W, atol=1e-12)
    np.testing.assert_allclose(sum(np.kron(a, b) for a, b in zip(A, B, strict=True)), W, atol=1e-12)


@pytest.mark.parametrize("kernel", ["1x1", "3x1", "1x3", "3x3"])
def test_errors_are_those_of_the_rearranged_matrix(kernel: str) -> None:
    """Van Loan: in the weight metric the best sum has the error of the other singular values."""
    site, W = conv(6, 8, 3, 3), random(6, 8, 3, 3)
    h, w = map(int, kernel.split("x"))
    parts = W.numpy().reshape(3, 2, 2, 4, h, 3 // h, w, 3 // w)
    values = np.linalg.svd(parts.transpose(0, 2, 4, 6, 1, 3, 5, 7).reshape(3 * 2 * h * w, -1), compute_uv=False)
    for rank in (1, 2, 5):
        error = fitted(f"kronecker:kernel={kernel},outputs=3x2,inputs=2x4", site, W, rank).error
        assert error == pytest.approx((values[rank:] ** 2).sum() / (values**2).sum(), rel=1e-6, abs=1e-12)
    full = len(values)
    assert get_format(f"kronecker:kernel={kernel},outputs=3x2,inputs=2x4").limits(site) == (full,)


@pytest.mark.parametrize("kernel", [None, "3x1", "3x3"])
def test_a_kronecker_product_is_recovered_with_one_term(kernel: str | None) -> None:
    first = (9, 3) if kernel is None else tuple(map(int, kernel.split("x")))
    A, B = random(4, 3, *first), random(2, 4, 9 // first[0], 3 // first[1], seed=1)
    W = torch.from_numpy(np.kron(A.numpy(), B.numpy()))
    format = "kronecker:" + (f"kernel={kernel}," if kernel else "") + "outputs=4x2,inputs=3x4"
    assert fitted(format, conv(8, 12, 9, 3), W, 1).error < 1e-14
    assert fitted("kronecker:outputs=2x4,inputs=4x3", conv(8, 12, 9, 3), W, 1).error > 0.1


LAYERS: list[tuple[str, type[nn.Module], dict[str, Any], tuple[int, ...]]] = [
    ("3x3", nn.Conv2d, {"kernel_size": 9, "stride": 2, "padding": 4}, (16, 15)),
    ("3x1", nn.Conv2d, {"kernel_size": (9, 3), "stride": (3, 2), "padding": (2, 5), "dilation": (1, 2)}, (14, 15)),
    ("1x3", nn.Conv2d, {"kernel_size": 3, "padding": "same", "dilation": 3, "groups": 2}, (7, 8)),
    ("3x3", nn.Conv2d, {"kernel_size": 9, "padding": "same"}, (9, 11)),
    ("3x2", nn.Conv2d, {"kernel_size": (9, 4), "padding": "valid", "stride": 3}, (12, 13)),
    ("3x3", nn.Conv2d, {"kernel_size": 9, "padding": 4, "padding_mode": "reflect", "stride": 2}, (9, 8)),
    ("3x3", nn.Conv2d, {"kernel_size": 9, "padding": 3, "padding_mode": "circular"}, (9, 8)),
    ("2x2", nn.ConvTranspose2d, {"kernel_size": 4, "stride": 2, "padding": 1, "output_padding": 1}, (5, 4)),
    ("2x1", nn.ConvTranspose2d, {"kernel_size": (4, 3), "stride": (3, 2), "padding": (5, 0), "dilation": 2}, (6, 4)),
    ("2", nn.Conv1d, {"kernel_size": 6, "stride": 2, "padding": 5, "dilation": 2, "groups": 2}, (17,)),
    ("1x3x1", nn.Conv3d, {"kernel_size": (2, 3, 2), "padding": 1}, (4, 5, 3)),
]


@pytest.mark.parametrize("kernel, kind, options, size", LAYERS)
def test_two_convolutions_compute_what_the_dense_one_does(
    kernel: str, kind: Any, options: dict[str, Any], size: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    dense, x = kind(8, 6, **options).double(), random(2, 8, *size)
    site, format = find(nn.Sequential(dense), x)["0"], get_format(f"kronecker:kernel={kernel}")
    factors = format.fit(site, site_weight(nn.Sequential(dense), site), weight_metrics(site), (2,))
    chain = format.build(dense, (2,), bias=True)
    format.fill(chain, factors, site_bias(nn.Sequential(dense), site))
    with torch.no_grad():
        write(dense, factors.dense())
    torch.testing.assert_close(chain(x), dense(x))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        chain(x)
    assert counter.get_total_flops() == 2 * format.cost(site, (2,), True).macs
    kernels = [layer.kernel_size for layer in chain if hasattr(layer, "kernel_size")]
    assert len(kernels) == 2
    assert kernels[1] == tuple(map(int, kernel.split("x")))
    assert tuple(np.prod(kernels, axis=0)) == dense.kernel_size


def test_the_second_convolution_is_dilated_by_the_first() -> None:
    dense = nn.Conv2d(8, 8, 9, 2, 4, 1)
    chain: Any = get_format("kronecker:kernel=3x3").build(dense, (1,), bias=True)
    first, second = (layer for layer in chain if hasattr(layer, "kernel_size"))
    assert (first.kernel_size, first.dilation, first.stride, first.padding) == ((3, 3), (1, 1), (1, 1), (4, 4))
    assert (second.kernel_size, second.dilation, second.stride, second.padding) == ((3, 3), (3, 3), (2, 2), (0, 0))


def same(kernel: tuple[int, int]) -> Site:
    layer = nn.Conv2d(8, 8, kernel, padding="same")
    return find(nn.Sequential(layer), torch.zeros(1, 8, 9, 9))["0"]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    "format, site, reason",
    [
        ("kronecker:kernel=2x1", conv(8, 8, 3, 3), "cannot split a kernel of 3 x 3, whose sizes are no multiples"),
        ("kronecker:kernel=3x1", conv(8, 8, 3), "splits kernels of 2 directions, and here is 3"),
        ("kronecker:kernel=3x1", Site(name="fc", kind="linear", weight_shape=(8, 8)), "and here is no kernel"),
        ("kronecker:kernel=2x1", same((4, 3)), "more zeros on one side, which 'same' needs for this kernel"),
        ("kronecker:outputs=2x2", conv(8, 8, 3, 3), "reads 4 outputs as 2 x 2, and here are 8"),
        ("kronecker:kernel=3x3,outputs=7x1,inputs=5x1", conv(7, 5, 3, 3), "needs numbers of inputs and outputs"),
    ],
)
def test_what_two_layers_cannot_compute_is_refused(format: str, site: Site, reason: str) -> None:
    found = get_format(format).refuses(site)
    assert found is not None
    assert re.match(rf"{re.escape(format)} .*{re.escape(reason)}.*; use svd$", found), found


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_same_padding_is_taken_where_both_sides_have_as_many_zeros() -> None:
    assert get_format("kronecker:kernel=3x1").refuses(same((9, 3))) is None
    assert get_format("kronecker:kernel=4x1").refuses(same((4, 3))) is None  # no direction is shared
