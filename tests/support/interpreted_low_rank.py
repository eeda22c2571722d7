"""The fused kernel in Triton's interpreter, on the CPU; run by `test_triton_low_rank` under TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rankwise.kernels.triton_low_rank import fused

SMALL = {"BLOCK_M": 16, "BLOCK_I": 16, "BLOCK_O": 16, "SPLITS": 1}
# Several programs share the outputs, more of them than there are blocks for in the narrow cases.
SHARED = {"BLOCK_M": 16, "BLOCK_I": 32, "BLOCK_O": 16, "SPLITS": 4}
# Of the largest difference to the plain chain in float64, relative to the largest output.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def factors(M: int, I: int, R: int, O: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: E741
    generator = torch.Generator().manual_seed(M + I + R + O)
    sizes = ((M, I), (R, I), (O, R), (O,))
    x, V, U, bias = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    return x, V / I**0.5, U / R**0.5, bias


def exact(x: Tensor, V: Tensor, U: Tensor, bias: Tensor | None) -> Tensor:
    middle = (
        F.linear(x.double(), V.double()).to(x.dtype).double()
    )  # the chain rounds its middle, and so does the kernel
    return F.linear(middle, U.double(), None if bias is None else bias.double())


def apart(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("blocks", [SMALL, SHARED], ids=["small", "shared"])
@pytest.mark.parametrize(
    "M, I, R, O",
    [(16, 32, 16, 32), (1, 48, 3, 40), (17, 33, 20, 65), (5, 7, 1, 3), (33, 16, 40, 16)],
    ids=["whole blocks", "one row", "ragged", "tiny", "more rank than inputs"],
)
def test_the_kernel_computes_the_chain(
    M: int,
    I: int,  # noqa: E741
    R: int,
    O: int,  # noqa: E741
    blocks: dict[str, int],
    dtype: torch.dtype,
) -> None:
    x, V, U, bias = factors(M, I, R, O, dtype)
    got = fused(x, V, U, bias, blocks)
    assert got.dtype == dtype
    assert got.shape == (M, O)
    assert apart(got, exact(x, V, U, bias)) < TOLERANCES[dtype]


def test_without_a_bias() -> None:
    x, V, U, _ = factors(3, 20, 5, 18, torch.float32)
    assert apart(fused(x, V, U, None, SMALL), exact(x, V, U, None)) < 1e-6


def test_strides_and_leading_dimensions() -> None:
    x, V, U, bias = factors(6, 20, 5, 18, torch.float32)
    turned = fused(x.T.contiguous().T, V.T.contiguous().T, U.T.contiguous().T, bias, SMALL)
    assert torch.equal(turned, fused(x, V, U, bias, SMALL))
    assert torch.equal(fused(x.view(2, 3, 20), V, U, bias, SMALL), turned.view(2, 3, 18))


def test_no_rows() -> None:
    x, V, U, bias = factors(1, 20, 5, 18, torch.float32)
    assert fused(x[:0], V, U, bias, SMALL).shape == (0, 18)


def test_products_are_added_up_in_single_precision() -> None:
    # 1 + 2^-12 * 4096 ones: in half precision the sum would stay at 1
    x = torch.ones(1, 4097, dtype=torch.float16)
    V = torch.full((1, 4097), 2.0**-12, dtype=torch.float16)
    V[0, 0] = 1.0
    got = fused(x, V, torch.ones(1, 1, dtype=torch.float16), None, {**SMALL, "BLOCK_I": 64})
    assert float(got) == 2.0
