"""Spectral penalties: gradients in closed form, in any metric, in loops of one's own and in `Loop`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.linalg.metric import Dense
from rankwise.linalg.spectrum import effective_rank
from rankwise.penalties import MEASURES, Penalised, SpectralPenalty, get_measure, spectral
from rankwise.training import Loop, LoopOptions, Samples

pytestmark = pytest.mark.usefixtures("one_thread")


def matrix(rows: int = 5, columns: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6)])
def test_gradients_are_finite_differences(name: str, shape: tuple[int, int]) -> None:
    W = matrix(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda W: spectral(W, name), [W])


@pytest.mark.parametrize("name", MEASURES)
def test_gradients_in_a_metric_are_finite_differences(name: str) -> None:
    X = matrix(30, 7, 1)
    metric = Dense(X.mT @ X)
    W = matrix().requires_grad_()
    assert torch.autograd.gradcheck(lambda W: spectral(W, name, metric), [W])
    root = torch.linalg.cholesky(metric.dense())
    assert torch.allclose(spectral(W, name, metric), spectral(W @ root, name))


@pytest.mark.parametrize("name", MEASURES)
def test_orthogonal_maps_change_nothing(name: str) -> None:
    U, V = (torch.linalg.qr(matrix(size, size, 2)).Q for size in (5, 7))
    assert torch.allclose(spectral(U @ matrix() @ V, name), spectral(matrix(), name))


@pytest.mark.parametrize("name", MEASURES)
def test_repeated_singular_values_and_zeros_do_no_harm(name: str) -> None:
    for W in (torch.eye(4), torch.zeros(3, 4), torch.ones(3, 4)):
        W = W.clone().requires_grad_()
        spectral(W, name).backward()
        assert torch.isfinite(W.grad).all()


def test_scale_invariant_measures_do_not_pull_along_the_weight() -> None:
    for name in MEASURES:
        W = matrix().requires_grad_()
        spectral(W, name).backward()
        along = float((W.grad * W.detach()).sum())
        assert (abs(along) < 1e-10) == get_measure(name).scale_invariant


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 8, 3, padding=1, groups=2)
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))


def test_a_penalty_is_the_sum_over_groups_and_sites() -> None:
    model, x = network(), torch.randn(2, 4, 4, 4)
    sites = rw.find(model, x)
    penalty = SpectralPenalty(model, sites, "nuclear", 0.5)
    first, last = model[0].weight.flatten(1), model[3].weight
    wanted = 0.5 * sum(torch.linalg.matrix_norm(W, "nuc") for W in (first[:4], first[4:], last))
    assert torch.allclose(penalty(), wanted)
    only = SpectralPenalty(model, sites, "effective_rank", 1.0, only="3")
    assert torch.allclose(only(), effective_rank(last).float() + 5e-5 * last.square().sum())
    assert SpectralPenalty(model, sites, "effective_rank", 1.0, decay=0.0).decay == 0


@pytest.mark.slow
def test_the_input_metric_sees_what_a_compression_cuts() -> None:
    """Inputs with few directions: the penalty in their metric falls, and so does the error of the compression."""
    torch.manual_seed(0)
    mixed = torch.randn(16, 16) * torch.logspace(0, -2, 16)[:, None]
    x = torch.randn(200, 16) @ mixed
    errors = []
    for weight in (0.0, 0.03):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(16, 16))
        stats = rw.collect(model, [x])
        wanted = model(x).detach()
        penalty = SpectralPenalty(model, stats, "nuclear", weight)
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(150):
            optimiser.zero_grad()
            ((model(x) - wanted).square().mean() + penalty()).backward()
            optimiser.step()
        (option,) = [o for o in rw.profile(model, rw.collect(model, [x]), round_to=1)["0"] if o.ranks == (4,)]
        errors.append(option.error)
    assert errors[1] < 0.5 * errors[0]


def test_every_few_steps_counts_for_all_of_them() -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))

    def trained(every: int) -> tuple[nn.Module, float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6))
        told = Penalised(rw.find(model, x[:1]), "nuclear", 1e-2, every=every)
        options = LoopOptions(epochs=4, batch=9, rate=0.05, optimiser="sgd")
        report = Loop(model, lambda x, _: model(x).square().mean(), Samples.of(x), options, techniques=[told]).run()
        return model, report.after

    (often, loss), (seldom, other) = trained(1), trained(4)
    assert torch.allclose(often[0].weight, seldom[0].weight, atol=0.02)
    assert loss == pytest.approx(other, rel=0.05)
    assert loss > 1e-2 * float(torch.linalg.matrix_norm(often[0].weight, "nuc"))  # the penalty is part of it


def test_mistakes() -> None:
    model, x = network(), torch.randn(2, 4, 4, 4)
    sites = rw.find(model, x)
    with pytest.raises(ValueError, match="the weight of a penalty is -1; it must be 0 or more"):
        SpectralPenalty(model, sites, "nuclear", -1)
    with pytest.raises(ValueError, match="every is 0"):
        Penalised(sites, every=0)
    with pytest.raises(ValueError, match="'fc'"):
        SpectralPenalty(model, sites, only="fc")
