"""Learning-compression, ADMM and trained rank pruning."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.penalties import Penalised
from rankwise.projections import Admm, LearningCompression, RankPruning
from rankwise.projections.rank_pruning import least_rank
from rankwise.training import Loop, LoopOptions, Samples

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(150, 10, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.randn(10, 2, generator=torch.Generator().manual_seed(1))) @ torch.randn(
    2, 10, generator=torch.Generator().manual_seed(2)
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 14), nn.Identity(), nn.Linear(14, 10))


def sites() -> rw.Sites:
    return rw.find(network(), X[:2])


def loop(model: nn.Module, *told: Any, epochs: float = 12, labels: Tensor = Y, **more: Any) -> Loop:
    options = LoopOptions(epochs=epochs, batch=27, rate=0.02)
    samples = Samples.of(X, labels=labels)
    return Loop(model, lambda x, y: (model(x) - y).square().mean(), samples, options, techniques=told, **more)


def test_the_projection_chooses_the_best_ranks_of_all() -> None:
    """Every pair of ranks within the budget is tried."""
    model, found = network(), sites()
    told = LearningCompression(found, {"params": 0.6})
    told.begin(model)
    plan, targets = told._projected(model)
    limit = 0.6 * plan.dense["params"]
    values = {name: torch.linalg.svdvals(model.get_submodule(name).weight.double()) for name in found}

    def cost(name: str, rank: int) -> int:
        return min(24 * rank, 140) + found[name].out_features

    def missed(name: str, rank: int) -> float:
        return 0.0 if 24 * rank >= 140 else float(values[name][rank:].square().sum())

    pairs = product(range(1, 11), repeat=2)
    best = min(missed("0", a) + missed("2", b) for a, b in pairs if cost("0", a) + cost("2", b) <= limit)
    reached = sum(float((model.get_submodule(n).weight - t).square().sum()) for n, t in targets.items())
    assert reached == pytest.approx(best, rel=1e-4)
    assert plan.planned["params"] <= limit


@pytest.mark.slow
def test_learning_compression_beats_compressing_the_same_training() -> None:
    full = X @ torch.randn(10, 10, generator=torch.Generator().manual_seed(3)) / 3  # no low rank computes this
    plain, learned = network(), network()
    loop(plain, labels=full, epochs=30).run()
    keep = {"params": 0.45}
    plan = rw.choose(plain, sites(), keep=keep, metric="weight", formats="svd", round_to=1)
    cut = rw.factorise(plain, plan, sites())
    training = loop(learned, LearningCompression(sites(), keep, first=1e-2, last=1.0, every=10), labels=full, epochs=30)
    report = training.run()
    assert training.plan is not None
    assert training.plan.planned["params"] <= 0.45 * training.plan.dense["params"]
    small = rw.factorise(learned, training.plan, sites())
    assert torch.allclose(small(X), learned(X), atol=1e-4)

    def error(model: nn.Module) -> float:
        return float((model(X) - full).detach().square().mean())

    assert error(small) < error(cut)
    assert report.after <= report.before  # the start, compressed, is among the states


def test_several_budgets_are_met_together() -> None:
    model = network()
    training = loop(model, LearningCompression(sites(), {"params": 0.7, "macs": 0.5}), epochs=1)
    training.run()
    assert training.plan is not None
    assert training.plan.planned["macs"] <= 0.5 * training.plan.dense["macs"]
    with pytest.raises(ValueError, match=r"0\.01"):
        loop(network(), LearningCompression(sites(), {"params": 0.01}))


def test_multipliers_bring_weights_to_their_targets() -> None:
    """At a fixed rho weights meet their targets only with multipliers."""
    model = network()
    plan = rw.choose(model, sites(), metric="weight", pin={"0": "svd:2", "2": "svd:2"}, keep={"params": 10**6})
    told = Admm(sites(), plan, rho=0.3, every=4)
    training = loop(model, told, epochs=20)
    training.run()
    assert training.plan is plan
    for name in ("0", "2"):
        assert torch.linalg.matrix_rank(model.get_submodule(name).weight.detach(), rtol=1e-4) == 2
    small = rw.factorise(model, plan, sites())
    assert torch.allclose(small(X), model(X), atol=1e-4)


@pytest.mark.parametrize(
    "format", ["pivoted_svd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tt", "kronecker"))]
)
def test_admm_takes_any_format(format: str) -> None:
    model = network()
    plan = rw.choose(model, sites(), metric="weight", formats=format, keep={"params": 0.7})
    training = loop(model, Admm(sites(), plan, rho=0.1, every=6), epochs=2)
    report = training.run()
    assert report.after <= report.before
    small = rw.factorise(model, plan, sites())
    assert torch.allclose(small(X), model(X), atol=1e-3)


def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    def told() -> LearningCompression:
        return LearningCompression(sites(), {"params": 0.6}, every=5)

    class KilledError(Exception):
        pass

    def kill(look: Any) -> None:
        if look.step == 10:
            raise KilledError

    whole, other = network(), network()
    loop(whole, told(), epochs=4).run()
    with pytest.raises(KilledError):
        loop(other, told(), epochs=4, checkpoint=tmp_path / "run.pt", progress=kill).run()
    other = network()
    loop(other, told(), epochs=4, checkpoint=tmp_path / "run.pt", resume=True).run()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
def test_rank_pruning_finds_the_rank_of_the_target() -> None:
    model = network()
    training = loop(model, RankPruning(sites(), 0.05, every=5), Penalised(sites(), "nuclear", 1e-3), epochs=20)
    training.run()
    assert training.plan is not None
    assert max(row.ranks[0] for row in training.plan.factorised) <= 3
    assert float((model(X) - Y).detach().square().mean()) < 0.2 * float(Y.square().mean())


def test_the_least_rank() -> None:
    squares = torch.tensor([8.0, 1.0, 1.0])
    assert [least_rank(squares, lost) for lost in (0.21, 0.2, 0.1, 0.05, 0.99)] == [1, 1, 2, 3, 1]


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="lost is 1, a share above 0 and below 1"):
        RankPruning(sites(), 1)
    with pytest.raises(ValueError, match="mu rises from 1 to 0"):
        LearningCompression(sites(), {"params": 0.5}, first=1, last=0)
    dense = rw.choose(network(), sites(), metric="weight", pin={"*": "dense"}, keep={"params": 10**6})
    with pytest.raises(ValueError, match="the plan leaves every layer dense"):
        loop(network(), Admm(sites(), dense))
