"""EVBMF against known answers: planted ranks, pure noise, invariances, the fixed point, published constants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankwise.linalg.evbmf import evbmf, evbmf_of, threshold_constant, weakened

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(L: int, M: int, seed: int = 0, std: float = 1.0) -> Tensor:
    return std * torch.randn(L, M, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows: int, rank: int, seed: int) -> Tensor:
    return torch.linalg.qr(noise(rows, rank, seed)).Q


def with_spectrum(values: Tensor, L: int, M: int, seed: int = 0) -> Tensor:
    return orthonormal(L, len(values), seed) * values @ orthonormal(M, len(values), seed + 1).mT


def heavy_tailed(L: int = 96, M: int = 864) -> Tensor:
    """As trained weights are: a power law over noise, unit variance."""
    matrix = with_spectrum(30 * torch.arange(1, L + 1, dtype=torch.float64) ** -0.6, L, M) + noise(L, M, 5, 0.1)
    return matrix / matrix.std()


@pytest.mark.parametrize(
    "alpha, tau, x, tau_approximate, x_approximate",
    [
        (1, 2.512862, 4.910815, 2.512900, 4.910847),
        (0.5, 1.782640, 3.563123, 1.776889, 3.558279),
        (0.25, 1.272608, 2.719055, 1.256450, 2.705423),
        (1 / 9, 0.864173, 2.103859, 0.837633, 2.081393),
        (0.02, 0.388756, 1.460203, 0.355378, 1.431656),
    ],
)
def test_threshold_constants(alpha: float, tau: float, x: float, tau_approximate: float, x_approximate: float) -> None:
    assert threshold_constant(alpha) == pytest.approx((tau, x), abs=1e-6)
    assert threshold_constant(alpha, exact=False) == pytest.approx((tau_approximate, x_approximate), abs=1e-6)


def test_the_constant_lies_above_the_edge_of_noise() -> None:
    for alpha in (1e-3, 0.01, 0.1, 0.3, 0.7, 1.0):
        assert threshold_constant(alpha)[1] > (1 + alpha**0.5) ** 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("L, M, rank", [(64, 576, 10), (128, 128, 10), (64, 64, 5)])
def test_planted_ranks_above_the_noise_are_found(L: int, M: int, rank: int, seed: int) -> None:
    edge = M**0.5 + L**0.5
    matrix = noise(L, M, seed) + with_spectrum(edge * torch.linspace(3, 1.5, rank, dtype=torch.float64), L, M, 9 + seed)
    found = evbmf(matrix)
    assert found.rank == rank
    assert isinstance(found.rank, int)
    assert found.variance == pytest.approx(1, rel=0.1)
    values = torch.linalg.svdvals(matrix)
    assert float(values[rank]) < found.threshold < float(values[rank - 1])


@pytest.mark.parametrize("L, M", [(64, 64), (64, 576), (512, 128)])
@pytest.mark.parametrize("dead", [0, 20, 40])
def test_pure_noise_has_no_rank_with_or_without_dead_rows(L: int, M: int, dead: int) -> None:
    matrix = noise(L, M, std=0.01)
    matrix[:dead] = 0
    matrix[:, : dead // 4] = 0
    found = evbmf(matrix)
    assert found.rank == 0
    assert found.variance == pytest.approx(1e-4, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_noise_it_is_the_numerical_rank(dtype: torch.dtype) -> None:
    matrix = (noise(64, 8) @ noise(8, 576, 1)).to(dtype)
    for scale in (1, 1e-3, 1e3):
        found = evbmf(scale * matrix)
        assert (found.rank, found.variance) == (8, 0.0)


def test_scale_and_orientation_do_not_matter() -> None:
    matrix = heavy_tailed()
    ranks = {evbmf(scale * matrix).rank for scale in (1, 0.1, 0.02, 0.005, 1e-3, 1e4)}
    assert len(ranks) == 1
    assert ranks == {evbmf(matrix.mT).rank}
    assert 5 < ranks.pop() < 96
    assert evbmf(1e-3 * matrix).variance == pytest.approx(1e-6 * evbmf(matrix).variance, rel=1e-9)


@pytest.mark.parametrize("matrix", [heavy_tailed(), heavy_tailed(40, 40), noise(30, 70)])
def test_the_noise_is_what_the_kept_components_leave(matrix: Tensor) -> None:
    """`sigma^2 = (||Y||^2 - sum_kept gamma gamma~) / (L M)` at the optimum."""
    found = evbmf(matrix)
    values = torch.linalg.svdvals(matrix)[: found.rank]
    left = matrix.square().sum() - (values * found.shrunken_R).sum()
    assert float(left) / matrix.numel() == pytest.approx(found.variance, rel=1e-8)
    assert bool((found.shrunken_R < values).all())
    assert bool((found.shrunken_R > 0).all())


def test_no_grid_point_has_less_free_energy() -> None:
    """Of a function with many local minima the global one is found."""
    from rankwise.linalg.evbmf import _energies

    matrix = heavy_tailed()
    L, M = matrix.shape
    x = threshold_constant(L / M)[1]
    squares = torch.linalg.svdvals(matrix).square()
    tried = torch.logspace(-8, 2, 20_000, dtype=torch.float64)
    tried = tried[tried > float(squares[-1]) / (M * x)]
    energies = _energies(squares, L, M, x, tried[tried > 1e-3])
    here = _energies(squares, L, M, x, torch.tensor([evbmf(matrix).variance], dtype=torch.float64))
    assert float(here) <= float(energies.min()) + 1e-9


def test_nothing_at_all() -> None:
    assert evbmf(torch.zeros(3, 4)).rank == 0
    assert evbmf_of(torch.zeros(0), 0, 0).rank == 0
    assert evbmf(torch.ones(1, 9)).rank in (0, 1)
    matrix = torch.zeros(5, 7)
    matrix[2] = torch.arange(7.0)
    assert evbmf(matrix).rank in (0, 1)
    for wrong in (torch.ones(3), torch.full((2, 2), torch.nan)):
        with pytest.raises(ValueError, match="a finite matrix is needed"):
            evbmf(wrong)


def test_singular_values_are_enough() -> None:
    matrix = heavy_tailed()
    assert evbmf_of(torch.linalg.svdvals(matrix), *matrix.shape).rank == evbmf(matrix).rank


def test_compat_depends_on_scale_and_orientation_as_the_port_does() -> None:
    matrix = heavy_tailed()
    assert abs(evbmf(matrix, compat=True).rank - evbmf(matrix).rank) <= 1
    ranks = [evbmf(scale * matrix, compat=True).rank for scale in (1, 0.1, 0.02, 0.005, 1e-3)]
    assert len(set(ranks)) > 1
    tiny = evbmf(1e-4 * matrix, compat=True)  # the bounds are closer than the tolerance: the first golden section stays
    squares, L, M = torch.linalg.svdvals(1e-4 * matrix).square(), *matrix.shape
    most = -(-L * M // (L + M)) - 1
    x = threshold_constant(L / M, exact=False)[1]
    lower = max(float(squares[most]) / (M * x), float(squares[most:].sum()) / (M * (L - most)))
    upper = float(squares.sum()) / (L * M)
    assert tiny.variance == pytest.approx(lower + 0.3819660 * (upper - lower), rel=1e-5)
    with pytest.raises(ValueError, match="exceeds the upper bound"):
        evbmf(noise(512, 64), compat=True)


def test_weakening() -> None:
    assert weakened(20, 100) == 20
    assert weakened(20, 100, 0.5) == 60
    assert weakened(20, 100, 1e-9) == 99
    assert weakened(2, 100, least=8) == 8
    assert weakened(2, 7, least=8) == 7
    assert weakened(0, 100) == 100
