"""Stable and effective rank against matrices whose spectrum is known by construction."""

from __future__ import annotations

import math

import pytest
import torch

from rankwise.linalg.spectrum import effective_rank, singular_values, stable_rank


def with_spectrum(values: list[float], rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, len(values), generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, len(values), generator=generator, dtype=torch.float64))[0]
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.mT


@pytest.mark.parametrize("rows, columns", [(6, 11), (11, 6), (7, 7)])
def test_singular_values_are_those_of_torch(rows: int, columns: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(singular_values(matrix), torch.linalg.svdvals(matrix.double()))


@pytest.mark.parametrize("rows, columns", [(8, 20), (20, 8)])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_singular_values_count_themselves(rows: int, columns: int, rank: int) -> None:
    matrix = with_spectrum([5.0] * rank, rows, columns)
    assert stable_rank(matrix).item() == pytest.approx(rank)
    # The noise of the Gram matrix (1e-8 of the largest) carries a little entropy.
    assert effective_rank(matrix).item() == pytest.approx(rank, rel=1e-5)


def test_known_spectrum() -> None:
    matrix = with_spectrum([4.0, 2.0, 1.0], 9, 5)
    assert stable_rank(matrix).item() == pytest.approx(21 / 16)
    shares = [4 / 7, 2 / 7, 1 / 7]
    assert effective_rank(matrix).item() == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_scale_does_not_matter(scale: float) -> None:
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(stable_rank(matrix * scale), stable_rank(matrix))
    torch.testing.assert_close(effective_rank(matrix * scale), effective_rank(matrix))


def test_a_zero_matrix_has_rank_zero() -> None:
    assert stable_rank(torch.zeros(3, 4)).item() == 0
    assert effective_rank(torch.zeros(3, 4)).item() == 0


def test_a_batch_is_its_matrices() -> None:
    batch = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(3))
    batch[1] = 0
    for measure in (stable_rank, effective_rank):
        torch.testing.assert_close(measure(batch), torch.stack([measure(matrix) for matrix in batch]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_weights_are_measured_in_float64(dtype: torch.dtype) -> None:
    assert stable_rank(torch.eye(5, dtype=dtype)).dtype == torch.float64
    assert stable_rank(torch.eye(5, dtype=dtype)).item() == pytest.approx(5)


def test_bad_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        stable_rank(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        effective_rank(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="not empty"):
        effective_rank(torch.zeros(3))
