"""Training with ordered ranks: what it finds, that it resumes, and what it refuses."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.ordered import (
    FlexRank,
    Maestro,
    NestedDistillation,
    Sampler,
    SwitchedNorms,
    counts,
    deploy,
    extract,
    lasso_step_,
    nested_profiles,
    order_,
    ordered_layers,
    recalibrate_,
    search_strength,
    using,
)
from rankwise.training import Loop, LoopOptions, Samples

pytestmark = pytest.mark.usefixtures("one_thread")


def linear_problem(sampled: bool, strength: float = 0.0, steps: int = 1000) -> tuple[list[float], list[float]]:
    """Errors of the prefixes after training on a linear target of rank 3, and those of the truncated SVD."""
    random = torch.Generator().manual_seed(0)
    target = torch.randn(9, 3, generator=random) @ torch.randn(3, 6, generator=random)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 9, bias=False))
    order_(model, rw.find(model, torch.randn(1, 6)))
    with torch.no_grad():  # a start that says nothing about the order
        for layer in model[0]:
            layer.weight.copy_(0.3 * torch.randn(layer.weight.shape, generator=random))
    optimiser, sampler = torch.optim.SGD(model.parameters(), 0.04), Sampler(seed=0)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for _ in range(steps):
        x = torch.randn(24, 6, generator=random)
        name, count = sampler(counts(model))
        with using(model, {name: count if sampled else 6}):
            loss = (model(x) - x @ target.mT).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if strength:
            lasso_step_(model, falling.get_last_lr()[0] * strength)
        falling.step()
    s = torch.linalg.svdvals(target)
    errors = []
    for count in range(1, 7):
        U, V = ordered_layers(model)["0"].factors(count)
        errors.append(float((U[0] @ V[0] - target).detach().norm() / target.norm()))
    return errors, [float(s[count:].norm() / s.norm()) for count in range(1, 7)]


def test_ordered_training_reaches_the_truncated_svd_and_plain_training_does_not() -> None:
    got, best = linear_problem(True)
    assert got == pytest.approx(best, abs=0.01)
    plain, _ = linear_problem(False)
    assert plain[-1] < 0.03
    assert plain[0] > best[0] + 0.1
    assert plain[2] > 0.1


@pytest.mark.slow
def test_the_lasso_changes_nothing_about_the_order() -> None:
    got, best = linear_problem(True, strength=1e-3)
    assert got == pytest.approx(best, abs=0.01)


X = torch.randn(160, 10, generator=torch.Generator().manual_seed(0))
Y = X @ torch.randn(10, 2, generator=torch.Generator().manual_seed(1)) @ torch.randn(2, 10)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.Identity(), nn.Linear(16, 10)).eval()


def loop(told: Any, model: nn.Module, epochs: float = 3, **more: Any) -> Loop:
    options = LoopOptions(epochs=epochs, batch=18, rate=0.02, statistics=True, optimiser="sgd")
    samples = Samples.of(X, labels=Y)
    return Loop(model, lambda x, y: (model(x) - y).square().mean(), samples, options, techniques=[told], **more)


def maestro(model: nn.Module, strength: float = 0.5, **more: Any) -> Maestro:
    return Maestro(rw.find(model, X[:2]), strength, threshold=1e-4, every=8, **more)


def test_maestro_finds_small_ranks_and_leaves_a_plain_network() -> None:
    model = network()
    training = loop(maestro(model, batches=[X[:40], X[40:80]]), model, epochs=20)
    report = training.run()
    assert report.after < 0.3 * report.before
    assert training.plan is not None
    assert [type(part) for part in model][::3] == [nn.Linear, nn.Linear]
    ranks = [row.ranks[0] for row in training.plan.factorised]
    assert ranks
    assert max(ranks) < 6
    small = rw.factorise(model, training.plan, rw.find(model, X[:2]))
    assert torch.allclose(small(X), model(X), atol=1e-4)
    assert "a group lasso of 0.5 left" in training.plan.factorised[0].why


def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = network()
    first = loop(maestro(whole), whole, epochs=4)
    first.run()
    killed = network()

    class KilledError(Exception):
        pass

    def kill(look: Any) -> None:
        if look.step == 16:
            raise KilledError

    with pytest.raises(KilledError):
        loop(maestro(killed), killed, epochs=4, checkpoint=tmp_path / "run.pt", progress=kill).run()
    resumed = network()
    second = loop(maestro(resumed), resumed, epochs=4, checkpoint=tmp_path / "run.pt", resume=True)
    second.run()
    assert second.plan == first.plan
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    other = network()
    with pytest.raises(ValueError, match="written with sampler 'pairs' and seed 0, not 'layers' and 0"):
        loop(maestro(other, sampler="layers"), other, epochs=4, checkpoint=tmp_path / "run.pt", resume=True).run()


def test_a_strength_that_prunes_everything_keeps_the_best_state() -> None:
    model = network()
    training = loop(maestro(model, strength=1e4), model)
    with pytest.raises(ValueError, match="prunes everything; choose a smaller strength than 10000, such as 5000"):
        training.run()
    assert torch.allclose(model(X), network()(X), atol=1e-4)  # the start, still ordered


def test_a_diverging_run_keeps_the_best_state() -> None:
    model = network()
    told = maestro(model)
    options = LoopOptions(epochs=3, batch=18, rate=1e6, clip=1e30, warmup=0.0, optimiser="sgd")
    training = Loop(model, lambda x, _: model(x).square().mean(), Samples.of(X), options, techniques=[told])
    with pytest.raises(ValueError, match="diverges at a rate of"):
        training.run()
    assert torch.isfinite(model(X)).all()


def test_recalibration_does_not_depend_on_the_order() -> None:
    model = network()
    batches = list(X.split(40))
    one = recalibrate_(copy.deepcopy(model), batches)
    two = recalibrate_(copy.deepcopy(model), batches[::-1])
    same = recalibrate_(copy.deepcopy(model), batches)
    assert torch.equal(one[1].running_mean, same[1].running_mean)
    assert torch.allclose(one[1].running_mean, two[1].running_mean, atol=1e-6)
    assert torch.allclose(one[1].running_mean, model[0](X).mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="there are no batches"):
        recalibrate_(model, [])


def test_switched_norms_hold_one_set_for_each_network() -> None:
    model = network()
    sites, norms = rw.find(model, X[:2]), SwitchedNorms(model)
    order_(model, sites)
    answers = {}
    for name, ranks in {"large": {"0": 10}, "small": {"0": 1}}.items():
        with using(model, ranks):
            recalibrate_(model, [X])
            norms.store(name)
            answers[name] = model(X)
    for name, ranks in {"large": {"0": 10}, "small": {"0": 1}}.items():
        norms.switch(name)
        with using(model, ranks):
            assert torch.equal(model(X), answers[name])
    other = SwitchedNorms(model)
    other.load_state_dict(norms.state_dict())
    with pytest.raises(ValueError, match="no statistics 'medium'; stored are large, small"):
        other.switch("medium")


def trained() -> nn.Sequential:
    """A network that is trained well enough to teach."""
    model = network()
    options = LoopOptions(epochs=10, batch=18, rate=0.02, statistics=True)
    samples = Samples.of(X, labels=Y)
    Loop(model, lambda x, y: (model(x) - y).square().mean(), samples, options).run()
    return model


def test_profiles_are_nested_and_meet_their_shares() -> None:
    model = trained()
    stats = rw.collect(model, [X])
    for source in (stats, stats.sites):
        for unit in ("params", "macs"):
            keeps = [0.9, 0.7, 0.5, 0.35]
            profiles = nested_profiles(model, source, keeps, unit=unit)
            for larger, smaller in pairwise(profiles):
                assert all(smaller[name] <= larger[name] for name in larger)
            assert profiles[-1] != profiles[0]
    whole = sum(p.numel() for p in model.parameters())
    for keep, profile in zip(keeps, nested_profiles(model, stats, keeps), strict=True):
        small, plan = extract(order_(copy.deepcopy(model), stats), stats.sites, profile)
        assert plan.planned["params"] <= keep * whole
        assert plan.planned["params"] == sum(p.numel() for p in small.parameters())
    (alone,) = nested_profiles(model, stats, [0.7], only="0")
    small, plan = extract(order_(copy.deepcopy(model), stats), stats.sites, alone)
    assert alone.keys() == {"0"}
    assert plan.planned["params"] <= 0.7 * whole
    with pytest.raises(ValueError, match=r"no ranks keep 0\.01 of the params; the least is"):
        nested_profiles(model, stats, [0.01])
    with pytest.raises(ValueError, match="unit 'bytes' is not one of macs, params"):
        nested_profiles(model, stats, [0.5], unit="bytes")


def test_distillation_over_profiles_brings_them_nearer_to_the_teacher() -> None:
    teacher = trained()
    stats = rw.collect(teacher, [X])
    profiles = nested_profiles(teacher, stats, [0.6, 0.4])
    model = order_(copy.deepcopy(teacher), stats)
    loss = NestedDistillation(model, teacher, profiles, logits=False)

    def distance(ranks: dict[str, int]) -> float:
        with using(model, ranks), torch.no_grad():
            return float((model(X) - teacher(X)).square().mean())

    before = [distance(profile) for profile in profiles]
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    torch.manual_seed(0)
    for _ in range(40):
        optimiser.zero_grad()
        loss(X).backward()
        optimiser.step()
    after = [distance(profile) for profile in profiles]
    assert all(late < early for late, early in zip(after, before, strict=True))
    with pytest.raises(ValueError, match="there are no profiles"):
        NestedDistillation(model, teacher, [])


@pytest.mark.slow
def test_flexrank_as_a_technique_delivers_the_last_profile() -> None:
    teacher = trained()
    stats = rw.collect(teacher, [X])
    profiles = nested_profiles(teacher, stats, [0.6, 0.4])
    model = copy.deepcopy(teacher)
    training = loop(FlexRank(stats, teacher, profiles, logits=False), model, epochs=2)
    report = training.run()
    assert report.after <= report.before
    assert training.plan is not None
    assert {row.site: row.ranks[0] for row in training.plan.factorised}.items() <= profiles[-1].items()


def test_deployment_is_nested_and_no_worse_than_equal_cuts() -> None:
    model = trained()
    stats = rw.collect(model, [X])
    wanted = model(X).detach()

    def judge(network: nn.Module) -> float:
        return float((network(X) - wanted).detach().square().mean())

    order_(model, stats)
    path = list(deploy(model, stats.sites, judge, least=0.4, unit="params"))
    for larger, smaller in pairwise(path):
        assert all(smaller.ranks[name] <= larger.ranks[name] for name in larger.ranks)
        assert smaller.cost < larger.cost
    assert path[0].loss == pytest.approx(0, abs=1e-6)
    with using(model, path[-1].ranks):
        assert judge(model) == pytest.approx(path[-1].loss)
    assert counts(model) == path[0].ranks
    with pytest.raises(ValueError, match="unit is 'bytes' of params, macs"):
        next(deploy(model, stats.sites, judge, unit="bytes"))


def test_the_search_for_a_strength() -> None:
    tried = []

    def train(strength: float) -> tuple[str, float]:
        tried.append(strength)
        if strength > 0.3:
            raise ValueError("it prunes everything")
        return f"net {strength}", strength + 0.1 / (1 + strength)

    assert search_strength(train, 1.0, aim=0.22)[:2] == (0.125, "net 0.125")
    assert tried == [1.0, 0.5, 0.25, 0.125]
    with pytest.raises(ValueError, match=r"no strength from 8 to 4 leaves a network: it prunes everything"):
        search_strength(train, 8.0, tries=2)
    assert search_strength(lambda s: (s, abs(s - 0.25)), 1.0)[0] == 0.25
