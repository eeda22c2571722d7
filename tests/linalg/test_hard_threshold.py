"""The hard threshold against its published table, and what it keeps of noise and of a planted signal."""

from __future__ import annotations

import pytest
import torch

from rankwise.linalg.hard_threshold import coefficient, hard_threshold, marchenko_pastur_median


@pytest.mark.parametrize(
    "beta, published", [(0.05, 1.5194), (0.1, 1.6089), (0.25, 1.8371), (0.5, 2.1711), (0.75, 2.5011), (1.0, 2.8582)]
)
def test_published_coefficients(beta: float, published: float) -> None:
    assert coefficient(beta) == pytest.approx(published, abs=2e-3)
    assert coefficient(beta) == pytest.approx(0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43, abs=0.03)


def test_the_median_of_noise() -> None:
    noise = torch.randn(400, 800, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    median = float((torch.linalg.svdvals(noise).square() / 800).median())
    assert marchenko_pastur_median(0.5) == pytest.approx(median, rel=0.01)


def test_a_planted_rank_is_found_at_any_scale() -> None:
    generator = torch.Generator().manual_seed(1)
    signal = torch.randn(80, 6, generator=generator) @ torch.randn(6, 200, generator=generator)
    for scale in (1.0, 1e-3):
        values = torch.linalg.svdvals(scale * (signal + torch.randn(80, 200, generator=generator)))
        assert int((values > hard_threshold(values, 80, 200)).sum()) == 6
    assert hard_threshold(torch.zeros(0), 0, 0) == 0
