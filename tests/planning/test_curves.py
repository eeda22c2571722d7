"""Curves that a user gives and options that a user pins belong to the network, or are refused with both counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.nets import batches_of, make
from torch import nn

import rankwise as rw
from rankwise.metrics import get_metric
from rankwise.plan import Curve, Option, dense_option
from rankwise.planning.curves import check_curves, check_option, pinned


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return make(lambda: nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 9)))


@pytest.fixture(scope="module")
def stats(net: nn.Module) -> rw.Statistics:
    return rw.collect(net, batches_of(32, 16))


@pytest.fixture(scope="module")
def curves(net: nn.Module, stats: rw.Statistics) -> dict[str, Curve]:
    return rw.profile(net, stats, formats=["svd"])


def test_curves_of_the_network_are_taken(stats: rw.Statistics, curves: dict[str, Curve]) -> None:
    check_curves(curves, stats.sites, stats.sites, get_metric("input"))


def test_a_site_without_a_curve_is_named_where_the_budget_needs_it(
    stats: rw.Statistics, curves: dict[str, Curve]
) -> None:
    one = {"2": curves["2"]}
    check_curves(one, stats.sites, ["2"], get_metric("input"))  # the other is ignored or pinned
    with pytest.raises(ValueError, match="hold nothing for site '0'; profile this network, or ignore what is missing"):
        check_curves(one, stats.sites, ["0", "2"], get_metric("input"))
    with pytest.raises(ValueError, match="hold nothing for sites '0', '2'"):
        check_curves({}, stats.sites, ["0", "2"], get_metric("input"))


def test_sites_that_stay_dense_need_no_curve(curves: dict[str, Curve]) -> None:
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 9))
    model[0].register_state_dict_post_hook(lambda *given: None)
    sites = rw.find(model, torch.zeros(1, 16))
    assert sites["0"].dense_because
    check_curves({"2": curves["2"]}, sites, sites, get_metric("input"))


@pytest.mark.parametrize("place", [0, 1, -1], ids=["dense", "first", "last"])
@pytest.mark.parametrize("count", ["params", "macs"])
def test_counts_of_another_network(count: str, place: int, stats: rw.Statistics, curves: dict[str, Curve]) -> None:
    curve = list(curves["0"])
    option = curve[place]
    wrong = curve[place] = replace(option, **{count: getattr(option, count) + 1})
    message = (
        rf"site '0': its curve counts {wrong.params:,} parameters and {wrong.macs:,} MACs for {option.format} .*, "
        rf"which in the 'input' metric are {option.params:,} and {option.macs:,}; profile this network in this metric"
    )
    with pytest.raises(ValueError, match=message):
        check_curves({**curves, "0": tuple(curve)}, stats.sites, ["0"], get_metric("input"))


def test_an_option_that_the_site_cannot_have(stats: rw.Statistics, curves: dict[str, Curve]) -> None:
    option = replace(curves["0"][-1], ranks=(13,))
    with pytest.raises(ValueError, match=r"site '0': svd cannot have ranks \(13,\)"):
        check_option(stats.sites["0"], option, get_metric("input"))
    with pytest.raises(ValueError, match="unknown format 'svdd'"):
        check_option(stats.sites["0"], replace(option, format="svdd"), get_metric("input"))


def test_a_pin_has_the_counts_and_the_error_of_its_curve(
    net: nn.Module, stats: rw.Statistics, curves: dict[str, Curve]
) -> None:
    site = stats.sites["0"]
    wanted = next(option for option in curves["0"] if option.ranks == (4,))
    found = pinned(net, stats, site, "svd:4", metric=get_metric("input"))
    assert found == replace(wanted, error=pytest.approx(wanted.error, rel=1e-4))
    assert pinned(net, stats, site, "dense", metric=get_metric("input")) == dense_option(site)
    shrunk = pinned(net, stats, site, ("svd", (4,)), metric="input", shrink=1.0)
    by_weight = pinned(net, stats.sites, site, "svd:4", metric="weight")
    assert isinstance(shrunk, Option)
    assert shrunk.error == pytest.approx(by_weight.error, rel=1e-4)
    assert by_weight.error != pytest.approx(wanted.error, rel=1e-2)


@pytest.mark.parametrize(
    "wanted, message",
    [
        ("svd:40", r"site '0': svd cannot have ranks \(40,\)"),
        ("tucker2:2,2", "site '0' cannot be pinned to tucker2: "),
        ("svd", "a pin is "),
    ],
)
def test_pins_that_are_refused(wanted: str, message: str, net: nn.Module, stats: rw.Statistics) -> None:
    with pytest.raises(ValueError, match=message):
        pinned(net, stats, stats.sites["0"], wanted, metric=get_metric("input"))
