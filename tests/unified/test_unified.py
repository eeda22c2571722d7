"""Rounds of the search, both ways to learn, the distance from dense layers, and the whole on a planted network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.training import Loop, LoopOptions, RankSearch, RanksInTurn, Samples
from rankwise.unified import Dissimilarity, unified

pytestmark = pytest.mark.usefixtures("one_thread")


def planted(rank: int = 4, width: int = 40) -> nn.Sequential:
    """A network whose first layer has a rank, and whose second one has none."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5))
    with torch.no_grad():
        model[2].weight.copy_(torch.randn(width, rank) @ torch.randn(rank, width) / width**0.5)
    return model.eval()


def data(count: int = 256) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(1))


def search_of(model: nn.Module, **options: object) -> RankSearch:
    return RankSearch(model, rw.find(model, data(1)), formats=["svd"], **options)  # type: ignore[arg-type]


def places(search: RankSearch, name: str = "2") -> list[int]:
    return [option.params for option in search.options[name]]


def test_a_round_is_finer_than_the_one_before() -> None:
    search = search_of(planted(), candidates=5)
    whole = places(search)
    with torch.no_grad():
        search.alphas["2"][2] = 5.0
    middle = search.options["2"][2]
    assert search.refine()
    finer = places(search)
    assert whole[1] <= finer[0] <= middle.params <= finer[-1] <= whole[3]
    assert len(finer) >= 2
    assert search.weights("2").std() < 1e-6  # the alphas began anew
    rounds = 0
    while search.refine():
        rounds += 1
        assert rounds < 10
    assert not search.refine()


def test_the_excess_is_that_of_the_whole_network() -> None:
    model = planted()
    search = search_of(model, unit="params")
    with torch.no_grad():
        for name, options in search.options.items():
            search.alphas[name].fill_(-1e3)[len(options) - 1] = 0.0  # all dense
    assert float(search.excess(0.4).detach()) == pytest.approx(0.6, abs=1e-6)
    with torch.no_grad():
        for alphas in search.alphas.values():
            alphas.fill_(-1e3)[0] = 0.0  # all as small as possible
    plan = search.plan()
    kept = plan.planned["params"] / plan.dense["params"]
    assert float(search.excess(0.4).detach()) == pytest.approx(kept - 0.4, abs=1e-6)
    assert search.is_collapsed()


def test_distances_have_gradients_where_they_are_asked() -> None:
    search = search_of(planted())
    search.distance("alphas").backward()
    assert all(alpha.grad is not None for alpha in search.parameters())
    assert all(parameter.grad is None for parameter in search.model.parameters())


@pytest.mark.parametrize("learn", ["loss", "distance"])
def test_a_budget_is_met_by_the_expected_cost(learn: str) -> None:
    """The additive aim ends near the budget; the product, which sees none, does not have to."""
    model, x = planted(), data()
    search = search_of(model, unit="params")
    loss = (lambda outputs, step: (outputs - model(step.inputs).detach()).square().mean()) if learn == "loss" else None
    turn = RanksInTurn(search, loss, keep={"params": 0.6}, aim="budget", weight=0.0, warm_up=2)
    options = LoopOptions(epochs=30, batch=64, rate=1e-4)
    Loop(model, lambda inputs, _: search.penalty(), Samples.of(x), options, techniques=[turn]).run()
    assert abs(float(search.excess(0.6).detach())) < 0.08


def test_the_distance_of_two_networks_is_what_its_equation_says() -> None:
    model, x = planted(), data(32)
    small, _ = rw.compress(model, [x], keep={"params": 0.5})
    near = Dissimilarity(model, small)
    outputs, distance = near(x)
    terms, answers, hidden = [], [], {}
    for network in (model, small):
        y = x
        for name, layer in network.named_children():
            y = layer(y)
            hidden[id(network), name] = y
    for name in near.names:
        terms.append((model.get_submodule(name).weight - small.get_submodule(name).weight).square().mean())
        answers.append((hidden[id(model), name] - hidden[id(small), name]).square().mean())
    torch.testing.assert_close(distance, torch.stack(terms).mean() + torch.stack(answers).mean())
    torch.testing.assert_close(outputs, small(x))
    distance.backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_distance_from_itself() -> None:
    model = planted()
    sites = rw.find(model, data(1))
    plan = rw.choose(model, sites, keep={"params": 0.99}, metric="weight", pin={"2": "svd:4"})
    small = rw.factorise(model, plan, sites)
    _, distance = Dissimilarity(model, small)(data(8))
    assert float(distance.detach()) < 1e-9
    with pytest.raises(ValueError, match="has no factorised layer"):
        Dissimilarity(model, model)


@pytest.mark.parametrize("labelled", [False, True])
def test_a_planted_rank_is_found_and_trained(labelled: bool) -> None:
    model, x = planted(), data(512)
    labels = model(x).argmax(1) if labelled else None
    small, report = unified(
        model, x, labels, keep={"params": 0.55}, formats="svd", epochs=12, batch=64, only=["2"], candidates=8
    )
    row = report.plan["2"]
    assert row.ranks
    assert row.ranks[0] >= 4
    assert report.plan.planned["params"] <= 0.55 * report.plan.dense["params"]
    assert 1 <= len(report.rounds) <= 2
    agree = (small(x).argmax(1) == model(x).argmax(1)).double().mean()
    assert agree > (0.8 if labelled else 0.97)  # labels say less than the scores of a random network
    assert report.tuned.after <= report.tuned.before
    assert "rounds of search" in str(report)


def test_resumed_is_as_never_stopped(tmp_path: Path) -> None:
    model, x = planted(), data()
    settings: dict[str, object] = {"keep": {"params": 0.6}, "formats": "svd", "epochs": 4, "batch": 64}
    once, _ = unified(model, x, checkpoint=tmp_path / "one", **settings)  # type: ignore[arg-type]

    class StoppedError(Exception):
        pass

    def stop(stage: str, look: object) -> None:
        if stage == "training":
            raise StoppedError

    with pytest.raises(StoppedError):
        unified(model, x, checkpoint=tmp_path / "two", progress=stop, **settings)  # type: ignore[arg-type]
    twice, _ = unified(model, x, checkpoint=tmp_path / "two", resume=True, **settings)  # type: ignore[arg-type]
    for one, two in zip(once.parameters(), twice.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_product_that_collapses_is_told() -> None:
    with pytest.raises(ValueError, match="the search collapsed"):
        unified(
            planted(), data(), keep={"params": 0.5}, formats="svd", learn="distance", aim="product", beta=4.0, epochs=40
        )


def test_mistakes() -> None:
    model, x = planted(), data()
    for wrong, message in (
        ({"keep": {"params": 0.5, "macs": 0.5}}, "takes one budget"),
        ({"keep": {"params": 2}}, "takes one budget"),
        ({"learn": "guess"}, "learn is 'guess'"),
        ({"aim": "sum"}, "aim is 'sum'"),
        ({"rounds": 0}, "rounds is 0"),
        ({"search": 1.0}, "search 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            unified(model, x, **{"keep": {"params": 0.5}, **wrong})  # type: ignore[arg-type]
