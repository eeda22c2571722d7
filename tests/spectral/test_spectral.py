"""Bases and a core: dynamical low-rank training, and SVD training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.spectral import Cored, Dynamical, SparseSpectrum
from rankwise.training import Loop, LoopOptions, Samples

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(150, 12, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.randn(12, 3, generator=torch.Generator().manual_seed(1))) @ torch.randn(
    3, 12, generator=torch.Generator().manual_seed(2)
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 12))


def loop(model: nn.Module, told: Any, epochs: float = 20, **more: Any) -> Loop:
    options = LoopOptions(epochs=epochs, batch=27, rate=0.05)
    samples = Samples.of(X, labels=Y)
    return Loop(model, lambda x, y: (model(x) - y).square().mean(), samples, options, techniques=[told], **more)


def dynamical(model: nn.Module, **more: Any) -> Dynamical:
    def loss(outputs: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return (outputs - labels).square().mean()

    return Dynamical(rw.find(model, X[:2]), loss, **{"every": 10, **more})


def cored(rank: int = 3, largest: int = 6) -> tuple[Cored, Tensor, Tensor]:
    W = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(3))
    held = Cored(nn.Conv1d(12, 16, 1, groups=2), W, rank, largest)
    return held, held.right_inverse(torch.zeros(16, 6, 1)), W


def test_the_start_is_the_truncated_svd() -> None:
    held, core, W = cored()
    U, s, V = torch.linalg.svd(W)
    wanted = (U[:, :, :3] * s[:, None, :3]) @ V[:, :3]
    assert torch.allclose(held(core), wanted.reshape(16, 6, 1), atol=1e-5)


def test_bases_stay_orthonormal_and_the_weight_the_same_when_they_widen() -> None:
    held, core, _ = cored()
    before = held(core)
    inside = held.U_GTR.clone()  # gradients that lie in the basis do no harm
    assert held.augment(inside, torch.randn(2, 6, 6)) == 6
    assert torch.allclose(held(core), before, atol=1e-6)
    for basis in (held.U_GTR, held.V_GDR):
        assert torch.allclose(basis.mT @ basis, torch.eye(6).expand(2, 6, 6), atol=1e-5)


def test_a_truncation_keeps_what_it_should_and_bounds_the_condition() -> None:
    held, core, W = cored(6)
    s = torch.linalg.svdvals(W)
    rank = held.truncate(core, lost=0.4, condition=1e6)
    tails = s.square().flip(1).cumsum(1).flip(1).sqrt() / torch.linalg.vector_norm(s, dim=1)[:, None]
    assert rank == int((tails > 0.4).sum(1).max())
    assert float((held(core).reshape(2, 8, 6) - W).norm()) <= 0.4 * float(W.norm()) * 2**0.5
    held, core, W = cored(6)
    limit = float(s[0, 0] / s[0, 2]) + 1e-3
    rank = held.truncate(core, lost=1e-6, condition=limit)
    singular = torch.linalg.svdvals(core[:, :rank, :rank])
    assert rank < 6
    assert float((singular[:, 0] / singular[:, -1]).min()) <= limit


def test_ranks_adapt_to_the_target() -> None:
    model = network()
    told = dynamical(model, lost=0.1, start=0.2)
    training = loop(model, told, epochs=30)
    report = training.run()
    assert training.plan is not None
    assert training.plan["0"].ranks == (3,)  # it started with 2
    assert type(model[0]) is nn.Linear
    assert report.after < 0.4 * report.before
    small = rw.factorise(model, training.plan, rw.find(model, X[:2]))
    assert torch.allclose(small(X), model(X), atol=1e-4)


@pytest.mark.slow
def test_the_regulariser_draws_singular_values_together() -> None:
    spread = []
    for bound in (0.0, 0.1):
        model = network()
        loop(model, dynamical(model, lost=0.1, bound=bound)).run()
        s = torch.linalg.svdvals(model[0].weight.detach())
        spread.append(float(s[0] / s[2]))
    assert spread[1] < spread[0]


@pytest.mark.parametrize("kind", ["dynamical", "spectrum"])
def test_a_stopped_run_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    def told(model: nn.Module) -> Any:
        return dynamical(model, every=4) if kind == "dynamical" else SparseSpectrum(rw.find(model, X[:2]))

    class KilledError(Exception):
        pass

    def kill(look: Any) -> None:
        if look.step == 10:
            raise KilledError

    whole, other = network(), network()
    loop(whole, told(whole), epochs=4).run()
    with pytest.raises(KilledError):
        loop(other, told(other), epochs=4, checkpoint=tmp_path / "run.pt", progress=kill).run()
    other = network()
    loop(other, told(other), epochs=4, checkpoint=tmp_path / "run.pt", resume=True).run()
    assert torch.equal(whole[0].weight, other[0].weight)


@pytest.mark.slow
def test_a_sparse_spectrum_has_few_values() -> None:
    ranks = []
    for weight in (0.0, 0.3):
        model = network()
        training = loop(model, SparseSpectrum(rw.find(model, X[:2]), weight, lost=0.01))
        training.run()
        assert training.plan is not None
        ranks.append(int(torch.linalg.matrix_rank(model[0].weight.detach(), rtol=1e-4)))
    assert ranks[1] <= ranks[0]
    assert ranks[1] <= 4
    assert float((model(X) - Y).detach().square().mean()) < 0.2 * float(Y.square().mean())


def test_convolutions_of_every_kind() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 4, 3, stride=2, groups=2))
    x = torch.randn(24, 4, 6, 6)
    wanted = model(x).detach()
    for make in (
        lambda sites: Dynamical(sites, lambda y, _: y.square().mean(), start=1.0, lost=1e-3),
        lambda sites: SparseSpectrum(sites, 0.0, lost=1e-6),
    ):
        told = make(rw.find(model, x[:1]))
        told.begin(model)
        assert torch.allclose(model(x), wanted, atol=1e-4)
        told.finish(model)
        assert torch.allclose(model(x), wanted, atol=1e-2)


def test_mistakes() -> None:
    model = network()
    with pytest.raises(ValueError, match="lost is 0 and start"):
        dynamical(model, lost=0)
    with pytest.raises(ValueError, match="condition is 0"):
        dynamical(model, condition=0)
    with pytest.raises(ValueError, match="sparsity 'l2' is not one of hoyer, l1"):
        SparseSpectrum(rw.find(model, X[:2]), sparsity="l2")
    told = dynamical(model)
    told.begin(model)
    with pytest.raises(ValueError, match="parametrised already"):
        SparseSpectrum(rw.find(network(), X[:2])).begin(model)
