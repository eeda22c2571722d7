"""Penalties with known values and gradients, a parametrisation that stays orthonormal, and the schedule."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nets import Residual, batches_of, chains, make
from torch import Tensor, nn

import rankwise as rw
from rankwise.training import OrthogonalPenalty, WeightSchedule, constrain_, deviation, expand_, merge_, release_
from rankwise.training.factors import factors
from rankwise.training.orthogonal import KINDS, double, soft, srip

pytestmark = pytest.mark.usefixtures("one_thread")


def orthonormal(groups: int, rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)).Q


def wide(format: str = "tucker2") -> nn.Module:
    model = make(lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(72, 6)))
    return expand_(model, rw.find(model, torch.zeros(1, 4, 5, 5)), format)


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), groups=st.integers(1, 3), scale=st.floats(0.1, 3))
@settings(max_examples=30, deadline=None)
def test_known_values(rows: int, columns: int, groups: int, scale: float) -> None:
    """Of `c U` with orthonormal U: every eigenvalue of `U^T U - I` is `c^2 - 1`."""
    rows = max(rows, columns)
    U = scale * orthonormal(groups, rows, columns)
    excess = scale**2 - 1
    assert float(soft(U)) == pytest.approx(groups * columns * excess**2, abs=1e-9)
    other = groups * (columns * excess**2 + (rows - columns))  # of U U^T - I, rows - columns eigenvalues are -1
    assert float(double(U)) == pytest.approx(groups * columns * excess**2 + other, abs=1e-9)
    assert float(srip(U)) == pytest.approx(groups * abs(excess), abs=1e-9)


def test_the_penalty_of_a_network_that_is_orthonormal_and_of_one_that_is_not() -> None:
    model = wide()
    penalties = {kind: OrthogonalPenalty(model, kind, weight=0.5) for kind in KINDS}
    ranks = [factor.matrix().shape[-1] for factor in factors(model)]
    assert ranks == [2, 4, 6]  # B and A of the convolution with two groups, and the outputs of the linear layer
    for penalty in penalties.values():
        assert penalty().item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        for factor in factors(model):
            factor.layer.weight.mul_(2**0.5)  # U^T U = 2 I
    sums = {"soft": 2 * 2 + 2 * 4 + 6, "srip": 2 + 2 + 1}
    sums["double"] = 2 * sums["soft"]  # all factors are square
    for kind, penalty in penalties.items():
        assert penalty().item() == pytest.approx(0.5 * sums[kind], rel=1e-4)
    assert deviation(model) == pytest.approx(1, rel=1e-5)
    normalised = OrthogonalPenalty(model, weight=1, normalise=True)
    assert normalised().item() == pytest.approx(2 * 2 / 4 + 2 * 4 / 16 + 6 / 36, rel=1e-4)


def test_there_is_no_gradient_at_an_orthonormal_start_and_the_core_never_has_one() -> None:
    model = wide()
    OrthogonalPenalty(model, "double", weight=1.0)().backward()
    moved = {id(factor.layer.weight) for factor in factors(model)}
    for chain in chains(model).values():
        for parameter in chain.parameters():
            assert (parameter.grad is not None) == (id(parameter) in moved)
            assert parameter.grad is None or float(parameter.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    U = (orthonormal(2, 5, 3) + 0.2 * orthonormal(2, 5, 3, seed=1)).requires_grad_()

    def value(U_GNR: Tensor) -> Tensor:
        torch.manual_seed(0)  # of the vector that srip starts from
        return KINDS[kind](U_GNR)

    assert torch.autograd.gradcheck(value, (U,))


def test_srip_is_the_spectral_norm() -> None:
    """Two power iterations are a lower bound of it, many reach it."""
    U = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = torch.linalg.matrix_norm(U.mT @ U - torch.eye(4, dtype=torch.float64), 2).sum()
    assert 0.3 * float(exact) < float(srip(U)) <= float(exact)
    assert float(srip(U, iterations=500)) == pytest.approx(float(exact), rel=1e-9)
    identity = torch.eye(4)[None].requires_grad_()
    srip(identity).backward()
    assert identity.grad is not None
    assert float(identity.grad.abs().max()) == 0  # and not NaN


@pytest.mark.parametrize("kind", KINDS)
def test_descent_makes_factors_orthonormal(kind: str) -> None:
    model = wide()
    with torch.no_grad():
        for factor in factors(model):
            factor.layer.weight.add_(0.1 * torch.randn_like(factor.layer.weight))
    before = deviation(model)
    penalty = OrthogonalPenalty(model, kind, weight=1.0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        penalty().backward()
        optimiser.step()
    assert deviation(model) < 0.25 * before


@pytest.mark.parametrize("map", ["cayley", "matrix_exp", "householder"])
@pytest.mark.parametrize("format", ["tucker2", "svd"])
def test_a_constrained_network_stays_orthonormal_and_is_released(map: str, format: str) -> None:
    model, x = wide(format), batches_of(8, 4, 5, 5, count=1)[0]
    before, names = model(x), list(model.state_dict())
    state = torch.get_rng_state()
    constrain_(model, map)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    start = [factor.matrix().detach().clone() for factor in factors(model)]
    for _ in range(3):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
    assert deviation(model) < 1e-5
    moved = [(now.matrix() - then).abs().max().item() for now, then in zip(factors(model), start, strict=True)]
    assert min(moved) > 1e-3
    trained = model(x)
    merged = merge_(copy.deepcopy(model))  # with or without the constraint
    torch.testing.assert_close(merged(x), trained, atol=1e-4, rtol=1e-4)
    release_(model)
    assert sorted(model.state_dict()) == sorted(names)
    assert all(isinstance(factor.layer.weight, nn.Parameter) for factor in factors(model))
    torch.testing.assert_close(model(x), trained, atol=1e-6, rtol=1e-6)


def test_a_constrained_network_of_every_layout() -> None:
    """Embeddings and transposed convolutions store their weights otherwise."""
    for layer, x in (
        (nn.Embedding(20, 24), torch.randint(20, (3, 5))),
        (nn.ConvTranspose2d(4, 48, 3, 2, groups=2), torch.randn(2, 4, 4, 4)),
        (nn.Conv2d(2, 24, 3), torch.randn(2, 2, 4, 4)),
    ):
        model = nn.Sequential(layer)
        before = model(x)
        constrain_(expand_(model, rw.find(model, x), "svd", only="0"))
        torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(release_(model)(x), before, atol=1e-4, rtol=1e-4)


def test_a_copy_and_a_state_dict_of_a_constrained_network() -> None:
    model, x = constrain_(wide()), batches_of(2, 4, 5, 5, count=1)[0]
    other = copy.deepcopy(model)
    optimiser = torch.optim.SGD(other.parameters(), lr=0.5)
    other(x).square().mean().backward()
    optimiser.step()
    assert not torch.equal(other(x), model(x))
    model.load_state_dict(other.state_dict())
    assert torch.equal(other(x), model(x))


def test_a_constrained_network_in_bfloat16() -> None:
    """The forward may be in less precision, the constraint is not."""
    model, x = constrain_(wide()), batches_of(2, 4, 5, 5, count=1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        assert deviation(model) < 1e-5


def test_the_schedule() -> None:
    penalty = OrthogonalPenalty(wide(), weight=2.0)
    rising = WeightSchedule(penalty, warmup=0.5)
    assert [rising(share) for share in (0, 0.25, 0.5, 1)] == [0, 1, 2, 2]
    assert penalty.weight == 2
    falling = WeightSchedule(penalty, "cosine")
    assert [falling(share) for share in (0, 0.5, 1)] == pytest.approx([2, 1, 0])


def test_a_loop_of_ones_own() -> None:
    """The three lines of the documentation: the penalty holds factors together that training alone pulls apart."""
    ends = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model, x = make(Residual).train(), torch.randn(32, 3, 8, 8)
        labels = torch.randint(6, (32,))
        expand_(model, rw.find(model, x))
        penalty = OrthogonalPenalty(model, kind="soft", weight=weight)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(10):
            optimiser.zero_grad()
            (nn.functional.cross_entropy(model(x), labels) + penalty()).backward()
            optimiser.step()
        ends[weight] = deviation(model)
    assert ends[1.0] < 0.5 * ends[0.0]


def test_what_it_refuses() -> None:
    dense = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="no chain of svd or tucker2"):
        OrthogonalPenalty(dense)
    model = wide()
    with pytest.raises(ValueError, match="'hard' is not one of soft, double, srip"):
        OrthogonalPenalty(model, "hard")
    with pytest.raises(ValueError, match="weight of a penalty is -1"):
        OrthogonalPenalty(model, weight=-1)
    with pytest.raises(ValueError, match="schedule 'linear'"):
        WeightSchedule(OrthogonalPenalty(model), "linear")
    with pytest.raises(ValueError, match="warmup is 1"):
        WeightSchedule(OrthogonalPenalty(model), warmup=1)
    with pytest.raises(ValueError, match="map 'qr'"):
        constrain_(model, "qr")
    constrain_(model)
    with pytest.raises(ValueError, match="constrained already"):
        constrain_(model)
