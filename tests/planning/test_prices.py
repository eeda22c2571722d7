"""Prices of options in every unit, against counts of networks that are built, and a unit from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from support.nets import Residual, batches_of, make
from torch import nn

import rankwise as rw
from rankwise.network.sites import Site
from rankwise.plan import Option, PlanRow, dense_option
from rankwise.planning.prices import NEEDS_EXAMPLE, Prices, counts
from rankwise.planning.units import COUNTED, UNITS, Latency, Unit, microseconds

Net = tuple[nn.Module, rw.Sites]


@pytest.fixture(scope="module")
def net() -> Net:
    model = make(Residual)
    return model, rw.find(model, batches_of(1, 3, 16, 16)[0])


@pytest.fixture(scope="module")
def plan(net: Net) -> rw.Plan:
    return rw.choose(*net, keep={"params": 0.5}, metric="weight")


class Hours:
    """A clock by which every option takes an hour less than its dense layer for each rank that it has not."""

    dense = 1000.0

    def costs(self, site: Site, options: Sequence[Option]) -> Sequence[float]:
        return [100.0 if not option.ranks else 90.0 + sum(option.ranks) for option in options]


@pytest.mark.parametrize("unit", [unit.name for unit in COUNTED])
def test_what_a_network_costs_is_the_rest_and_its_sites(net: Net, plan: rw.Plan, unit: str) -> None:
    prices = Prices(*net)
    options = {row.site: Option(**{n: getattr(row, n) for n in Option.__dataclass_fields__}) for row in plan.rows}
    total = prices.rest(unit) + sum(prices.of(net[1][name], [option], unit)[0] for name, option in options.items())
    assert total == prices.planned(plan.rows)[unit] == plan.planned[unit]
    assert prices.dense[unit] == prices.rest(unit) + sum(
        prices.of(site, [dense_option(site)], unit)[0] for site in net[1].values()
    )


def test_counts_are_those_of_the_built_network(net: Net, plan: rw.Plan) -> None:
    size = rw.evaluate.size(rw.factorise(net[0], plan, net[1]), net[1].example)
    assert counts(*net, plan.rows) == {"params": size.params, "macs": size.macs, "bytes": size.bytes}


def test_shares_and_numbers(net: Net) -> None:
    prices = Prices(*net)
    assert prices.limit("macs", 0.25) == 0.25 * prices.dense["macs"]
    assert prices.limit("params", 1) == 1
    assert prices.limit("params", 1.0) == prices.dense["params"]
    with pytest.raises(ValueError, match="a latency budget is measured") as error:
        prices.limit("latency", 0.5)
    assert str(error.value) == NEEDS_EXAMPLE


@pytest.mark.parametrize("unit", [unit.name for unit in COUNTED])
def test_a_curve_is_priced_once(net: Net, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites = net
    curves = rw.profile(model, sites, metric="weight", formats=["svd"])
    prices, curve = Prices(model, sites), curves["stem"]
    table = prices.table(sites["stem"], curve, unit)
    assert list(table) == list(prices.of(sites["stem"], curve, unit))
    monkeypatch.setattr(prices, "of", lambda *_: pytest.fail("priced again"))
    assert prices.table(sites["stem"], curve, unit) is table
    monkeypatch.undo()
    assert list(prices.table(sites["stem"], curve[1:], unit)) == list(table)[1:]
    twice = prices.together([(sites["stem"], curve)] * 2, unit)
    assert list(twice) == [2 * cost for cost in prices.table(sites["stem"], curve, unit)]


def test_measured_prices_are_asked_each_time(net: Net) -> None:
    hours, sites = Hours(), net[1]
    prices, curve = Prices(*net, measured=[Latency(hours, sites)]), (dense_option(sites["stem"]),)
    assert list(prices.table(sites["stem"], curve, "latency")) == [100.0]
    hours.costs = lambda site, options: [50.0 for _ in options]  # type: ignore[method-assign]
    assert list(prices.table(sites["stem"], curve, "latency")) == [50.0]


def test_counted_prices_are_known_beforehand(net: Net, plan: rw.Plan) -> None:
    prices, options = Prices(*net), {"stem": ((dense_option(net[1]["stem"]),), "")}
    assert prices.usable(options) is options
    assert not prices.learn(plan)
    assert not prices.doubts({"macs": 0.5}, lambda unit: plan)
    assert prices.settled(lambda amounts, usable=True: plan, {"macs": 0.5}, lambda unit: 0.1) is plan


def test_a_further_unit_is_counted_like_the_others(net: Net) -> None:
    sites = net[1]
    prices = Prices(*net, measured=[Latency(Hours(), sites)])
    rows = [PlanRow(site="stem", format="svd", ranks=(4,), params=1, macs=1)]
    assert prices.planned(rows)["latency"] == 994.0
    assert prices.limit("latency", 0.5) == 500.0
    assert prices.rest("latency") == 1000 - 100 * len(sites)


def test_units_by_name() -> None:
    assert list(UNITS) == ["params", "macs", "bytes", "linear", "latency"]
    assert [unit.name for unit in UNITS.values() if unit.is_measured] == ["latency"]
    assert all(issubclass(unit, Unit) and UNITS[unit.name] is unit for unit in UNITS.values())
    assert (UNITS["latency"].read("1.5ms"), UNITS["latency"].read(0.5), UNITS["macs"].read("1")) == (1500, 0.5, "1")
    assert (UNITS["latency"].shown(1234.5), UNITS["params"].shown(1234)) == ("1.234 ms", "1,234")


@pytest.mark.parametrize("text", ["8", "1us", "ms", "1e-9ms", "8 minutes"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a time such as 8ms, 800us or 0\.5s, of at least 2us"):
        microseconds(text)


def test_bytes_of_a_format_that_is_not_registered(net: Net) -> None:
    class Padded(type(rw.FORMATS["svd"])):  # type: ignore[misc]
        name = "padded"

        def indices(self, site: Site, ranks: tuple[int, ...]) -> int:
            return 10

    site = net[1]["head"]
    option = Option(format="padded", ranks=(2,), params=50, macs=50, error=0.0)
    width = torch.empty(()).element_size()
    assert Prices(*net, {"padded": Padded()}).of(site, [option], "bytes") == (50 * width + 40,)
    with pytest.raises(ValueError, match="unknown format 'padded'"):
        Prices(*net).of(site, [option], "bytes")
