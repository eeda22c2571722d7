"""Layers that read the same input, as one site: a kind that is made outside the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.formats.weights import site_bias, site_weight
from rankwise.layers.kinds import Role
from rankwise.network.forward import Forward
from rankwise.network.kinds import Joint, register
from rankwise.network.site import KINDS


class QueryKey(Joint):
    """The layers `query` and `key` of the same module."""

    name = "query_key"

    def joined(self, forward: Forward) -> Iterator[tuple[str, ...]]:
        for name, module in forward.model.named_modules():
            if isinstance(getattr(module, "query", None), nn.Linear):
                yield f"{name}.query".strip("."), f"{name}.key".strip(".")


class Scores(nn.Module):
    def __init__(self, bias: bool = True, twice: bool = False) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(24, 16, bias), nn.Linear(24, 20, bias)
        self.out, self.twice = nn.Linear(36, 5), twice

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.query(x), self.key(2 * x if self.twice else x)], -1).relu())


@pytest.fixture(autouse=True)
def kind() -> Iterator[None]:
    register(QueryKey())
    yield
    del KINDS["query_key"]


def network(bias: bool = True, rank: int = 6) -> nn.Module:
    """Two blocks; query and key of each lie in one space of the given dimension."""
    torch.manual_seed(0)
    model = nn.Sequential(Scores(bias), nn.ReLU(), nn.Linear(5, 24), Scores(bias)).eval()
    with torch.no_grad():
        for part in (model[0], model[3]):
            shared = torch.randn(rank, 24)
            for layer in (part.query, part.key):
                layer.weight.copy_(torch.randn(len(layer.weight), rank) @ shared / 24)
    return model


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, 24, generator=generator) for _ in range(4)]


def test_two_slots_are_one_site() -> None:
    model = network()
    sites = rw.find(model, torch.zeros(3, 24))
    site = sites["0.query"]
    assert (site.kind, site.role, site.slots) == ("query_key", Role.JOINT, (("0.query",), ("0.key",)))
    assert (site.weight_shape, site.aliases, site.has_bias) == ((36, 24), ("0.key",), True)
    assert site.macs == 3 * 36 * 24
    assert site.params == 36 * 24 + 36
    assert "0.key" not in sites
    torch.testing.assert_close(site_weight(model, site)[16:], model[0].key.weight.detach().double())
    assert torch.equal(site_bias(model, site)[:16], model[0].query.bias.detach().double())
    assert sites.total_macs == rw.find(nn.Sequential(*model), torch.zeros(3, 24)).total_macs


def test_layers_of_different_inputs_are_sites_of_their_own() -> None:
    sites = rw.find(Scores(twice=True), torch.zeros(3, 24))
    assert {name: site.kind for name, site in sites.items()} == dict.fromkeys(["query", "key", "out"], "linear")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", ["one-shot", "sequential"])
def test_the_shared_space_is_found(bias: bool, method: str) -> None:
    model, data = network(bias), batches()
    stats = rw.collect(model, data)
    pins = {"0.query": "svd:6", "3.query": "svd:6", "*out": "dense", "2": "dense"}
    plan = rw.choose(model, stats, pin=pins, rule="energy:share=0.99")
    small = rw.factorise(
        model, plan, stats if method == "one-shot" else None, data=None if method == "one-shot" else data
    )
    torch.testing.assert_close(small(data[0]), model(data[0]), atol=1e-4, rtol=1e-4)
    for part in (small[0], small[3]):
        assert part.query[0] is part.key[0]  # one first factor
        assert part.query[1].weight.shape == (16, 6)
    assert sum(parameter.numel() for parameter in small.parameters()) == plan.planned["params"]
    # Two layers by themselves would need the first factor twice.
    assert plan["0.query"].params == 6 * 24 + 36 * 6 + 36
    assert plan["0.query"].macs == 2 * 6 * 24 + 36 * 6


def test_it_is_planned_within_a_budget_and_no_worse_than_its_layers_alone() -> None:
    model, data = network(), batches()
    plan = rw.choose(model, rw.collect(model, data), keep={"params": 0.5})
    assert plan.planned["params"] <= 0.5 * plan.dense["params"]
    assert plan["0.query"].format == "svd"
    joint = plan["0.query"]
    alone = 2 * joint.ranks[0] * 24
    assert joint.params < alone + joint.ranks[0] * 36


def test_other_formats_refuse_it() -> None:
    site = rw.find(network(), torch.zeros(3, 24))["0.query"]
    for name, format in rw.FORMATS.items():
        assert (format.refuses(site) is None) == (name == "svd")


@pytest.mark.parametrize("metric", ["fisher", "weight", "diagonal"])
def test_other_metrics(metric: str) -> None:
    model, data = network(), batches()
    stats = rw.collect(model, data, gradients=metric == "fisher")
    if metric == "fisher":
        second_TT = stats["0.query"].gradients.second_GTT[0]
        assert second_TT.shape == (36, 36)
        assert not second_TT[:16, 16:].any()  # what two layers have in common is left out
        assert second_TT.diagonal().min() > 0
    plan = rw.choose(model, stats, keep={"params": 0.6}, metric=metric)
    small = rw.factorise(model, plan, stats)
    assert (small(data[0]) - model(data[0])).norm() < 0.6 * model(data[0]).norm()


def test_it_is_stored_and_loaded_without_the_kind(tmp_path: Path) -> None:
    model, data = network(), batches()
    small, _ = rw.compress(model, data, keep={"params": 0.6})
    rw.save(small, tmp_path / "out")
    kept = KINDS.pop("query_key")
    try:
        loaded = rw.load(network(), tmp_path / "out", example=data[0])
    finally:
        KINDS["query_key"] = kept
    torch.testing.assert_close(loaded(data[0]), small(data[0]), atol=0, rtol=0)
    assert loaded[0].query[0].weight is loaded[0].key[0].weight


def test_statistics_are_stored(tmp_path: Path) -> None:
    stats = rw.collect(network(), batches())
    stats.save(tmp_path / "stats.safetensors")
    assert rw.Statistics.load(tmp_path / "stats.safetensors").sites["0.query"] == stats.sites["0.query"]


def test_a_latency_plan_knows_its_times() -> None:
    model, data = network(), batches()
    plan = rw.choose(model, rw.collect(model, data), keep={"latency": "9s"}, pin={"0.query": "svd:6"}, example=data[0])
    assert plan.latency is not None
    assert (plan["0.query"].format, plan["0.query"].ranks) == ("svd", (6,))


def test_a_name_can_be_registered_once() -> None:
    with pytest.raises(ValueError, match="already"):
        register(QueryKey())
