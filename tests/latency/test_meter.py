"""The meter on an engine that is no clock: what it runs and how often, what it predicts, and how it is put right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.nets import chains, make, plan_of, unchanged
from torch import nn

import rankwise as rw
from rankwise.latency import Latency, Work
from rankwise.latency.engine import Engine
from rankwise.latency.meter import Meter
from rankwise.plan import Option, dense_option, option_of

X = torch.zeros(4, 32)


class Fake(Engine):
    """A millisecond and a microsecond for each parameter; planned networks may save another share of that.

    Attributes:
        ran: names of the networks of every call of `times`.
        held: the networks that were prepared.
        slower: how much slower the machine is now.
    """

    name, summary = "fake", "a device of known numbers"

    def __init__(self, gain: float = 1.0, noise: float = 0.0) -> None:
        super().__init__(threads=3)
        self.gain, self.noise, self.slower = gain, noise, 1.0
        self.ran: list[tuple[str, ...]] = []
        self.held: list[nn.Module] = []

    def device(self, network: nn.Module) -> str:
        return "paper"

    def hold(self, work: Work) -> None:
        self.held.append(work.module)

    def times(self, works: Mapping[str, Work], **options: Any) -> dict[str, Latency]:
        self.ran.append(tuple(works))
        dense = seconds(works["dense"].module)
        found = {}
        for name, work in works.items():
            median = self.slower * (dense - self.gain * (dense - seconds(work.module)))
            found[name] = Latency(median=median, low=median * (1 - self.noise), high=median * (1 + self.noise))
        return found


def seconds(network: nn.Module) -> float:
    return 1e-3 + 1e-6 * sum(parameter.numel() for parameter in network.parameters())


class Layers:
    """Times of layers that agree with the engine, and how often each was asked for."""

    def __init__(self, engine: Fake, model: nn.Module, sites: rw.Sites) -> None:
        self.engine, self.model, self.sites = engine, model, sites
        self.bias = {name: site.chain_bias("weight") for name, site in sites.items()}
        self.asked: list[tuple[str, Option]] = []

    def seconds(self, site: str, option: Option) -> Latency:
        self.asked.append((site, option))
        return Latency(median=1e-6 * option.params, low=0.0, high=1.0)

    def drift(self) -> float:
        return 1.0


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return make(lambda: nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)))


@pytest.fixture(scope="module")
def sites(net: nn.Module) -> rw.Sites:
    return rw.find(net, X)


def meter(net: nn.Module, sites: rw.Sites, engine: Fake) -> Meter:
    return Meter(Layers(engine, net, sites), X)  # type: ignore[arg-type]


def planned(net: nn.Module, sites: rw.Sites, found: Meter, ranks: Mapping[str, int]) -> rw.Plan:
    """A plan that says what the meter predicts for it."""
    plan = plan_of(sites, {name: ("svd", (rank,)) for name, rank in ranks.items()}, metric="weight")
    latency = found.dense
    for row in plan.factorised:
        dense, chain = found.costs(sites[row.site], [dense_option(sites[row.site]), option_of(row)])
        latency += chain - dense
    return replace(plan, planned={**plan.planned, "latency": latency})


def test_the_dense_network_is_prepared_once_and_timed_once(net: nn.Module, sites: rw.Sites) -> None:
    engine = Fake()
    with unchanged(net):
        found = meter(net, sites, engine)
    assert found.dense == pytest.approx(1e6 * seconds(net))
    assert engine.ran == [("dense",)]
    (held,) = engine.held
    assert held is not net
    assert not any(parameter.requires_grad for parameter in held.parameters())
    found.check(planned(net, sites, found, {"0": 8}))
    found.check(planned(net, sites, found, {"2": 8}))
    assert engine.ran == [("dense",), ("dense", "planned"), ("dense", "planned")]
    assert engine.held.count(held) == 1
    assert len(engine.held) == 3  # each planned network is prepared once, however often it is timed


def test_costs_are_what_the_layers_take(net: nn.Module, sites: rw.Sites) -> None:
    found = meter(net, sites, Fake())
    options = [Option(format="svd", ranks=(rank,), params=100 * rank, macs=1, error=0.0) for rank in (1, 3)]
    assert found.costs(sites["0"], options) == pytest.approx((100, 300))
    found.gain = 0.5  # half of what the layers save by themselves
    dense = sites["0"].params
    assert found.costs(sites["0"], options) == pytest.approx(((dense + 100) / 2, (dense + 300) / 2))
    assert found.costs(sites["0"], [dense_option(sites["0"])]) == pytest.approx((dense,))


def test_a_prediction_that_comes_true(net: nn.Module, sites: rw.Sites) -> None:
    found = meter(net, sites, Fake(noise=0.01))
    plan = planned(net, sites, found, {"0": 8, "2": 4})
    told = found.check(plan)
    assert (told.engine, told.device, told.threads, told.corrections) == ("fake", "paper", 3, 0)
    assert told.dense == pytest.approx(found.dense / 1000)
    assert told.measured == pytest.approx(1e3 * seconds(found.built(plan)))
    assert told.predicted == pytest.approx(told.measured)
    assert told.blind == pytest.approx(told.predicted)
    assert (told.low, told.high) == pytest.approx((told.measured * 0.99 / 1.01, told.measured * 1.01 / 0.99))
    assert found.gain == pytest.approx(1.0)


@pytest.mark.parametrize("gain", [0.5, 1.25])
def test_a_network_that_saves_another_share_corrects_what_is_predicted(
    gain: float, net: nn.Module, sites: rw.Sites
) -> None:
    found = meter(net, sites, Fake(gain=gain))
    first = found.check(planned(net, sites, found, {"0": 8}))
    assert first.measured != pytest.approx(first.predicted, rel=0.01)
    assert (found.gain, found.corrections) == (pytest.approx(gain), 1)
    second = found.check(planned(net, sites, found, {"0": 4, "2": 8}))
    assert second.measured == pytest.approx(second.predicted)
    assert second.corrections == 1  # before it
    layers = 1e-3 * sum(sites[name].params - (32 + 64) * rank - b for name, rank, b in (("0", 4, 64), ("2", 8, 32)))
    assert second.blind == pytest.approx(second.dense - layers)  # what the layers said, uncorrected
    assert (found.gain, found.corrections) == (pytest.approx(gain), 2)


def test_a_machine_that_slows_down_is_no_fault_of_the_plan(net: nn.Module, sites: rw.Sites) -> None:
    engine = Fake()
    found = meter(net, sites, engine)
    engine.slower = 3.0
    told = found.check(planned(net, sites, found, {"0": 8}))
    assert told.measured == pytest.approx(told.predicted)
    assert told.dense == pytest.approx(1e3 * seconds(net))
    assert found.gain == pytest.approx(1.0)


def test_a_network_that_saves_nothing_leaves_a_gain_above_zero(net: nn.Module, sites: rw.Sites) -> None:
    found = meter(net, sites, Fake(gain=-0.5))
    plan = planned(net, sites, found, {"0": 8})
    told = found.check(plan)
    assert told.measured > told.dense
    assert found.gain == pytest.approx(0.01 * found.dense / (found.dense - plan.planned["latency"]))


def test_a_plan_that_promises_nothing_corrects_nothing(net: nn.Module, sites: rw.Sites) -> None:
    engine = Fake(gain=0.5)
    found = meter(net, sites, engine)
    plan = planned(net, sites, found, {"0": 8})
    told = found.check(replace(plan, planned={"latency": found.dense}))
    assert told.predicted == told.dense
    assert (found.gain, found.corrections) == (1.0, 0)


def test_a_dense_plan_is_not_run(net: nn.Module, sites: rw.Sites) -> None:
    engine = Fake()
    found = meter(net, sites, engine)
    told = found.check(planned(net, sites, found, {}))
    assert told.measured == told.low == told.high == told.predicted == told.dense
    assert engine.ran == [("dense",)]


def test_what_is_built_is_the_plan(net: nn.Module, sites: rw.Sites) -> None:
    found = meter(net, sites, Fake())
    plan = planned(net, sites, found, {"0": 8, "2": 4})
    with unchanged(net, rng=False):  # the factors are random
        small = found.built(plan)
    assert {name: chain.ranks for name, chain in chains(small).items()} == {"0": (8,), "2": (4,)}
    assert sum(p.numel() for p in small.parameters()) == sum(row.params for row in plan.rows)
    assert not small.training
    assert small(X).isfinite().all()
