"""Curves: what is offered for each site, at which cost, with which error."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from support.nets import Residual, batches_of, make
from torch import nn

from rankwise import FORMATS, Statistics, collect, find, profile
from rankwise.formats.both_sides import fit
from rankwise.formats.ladders import steps
from rankwise.formats.svd import SVD
from rankwise.formats.weights import site_weight
from rankwise.latency.grid import grid_of
from rankwise.latency.roofline import Device, RooflineEngine
from rankwise.plan import dense_option
from rankwise.planning.profile import in_order, site_metric


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, Statistics]:
    model = make(Residual)
    return model, collect(model, batches_of(8, 3, 8, 8), gradients=True)


@pytest.mark.parametrize("metric", ["input", "weight"])
def test_options_cost_less_than_dense_and_count_exactly(net: tuple[nn.Module, Statistics], metric: str) -> None:
    model, stats = net
    curves = profile(model, stats, metric=metric)
    assert list(curves) == list(stats.sites)
    for name, curve in curves.items():
        site = stats.sites[name]
        assert curve[0] == dense_option(site)
        assert (curve[0].params, curve[0].macs, curve[0].error) == (site.params, site.macs, 0.0)
        for option in curve[1:]:
            format = FORMATS[option.format]
            assert (option.params, option.macs) == format.cost(site, option.ranks, site.chain_bias(metric))
            assert option.params < site.params
            assert option.macs < site.macs
            assert 0 <= option.error <= 1 + 1e-9
        assert len({(option.format, option.ranks) for option in curve}) == len(curve)
    used = {option.format for curve in curves.values() for option in curve}
    assert used == {"dense", "svd", "spatial_svd", "tucker2"}


@pytest.mark.parametrize("metric", ["input", "diagonal", "fisher", "uncentred", "weight"])
def test_errors_are_those_of_the_fit(net: tuple[nn.Module, Statistics], metric: str) -> None:
    model, stats = net
    site = stats.sites["block2.conv2"]
    two_sided = site_metric(stats, site, metric, model)
    for option in profile(model, stats, metric=metric, only="block2.conv2")["block2.conv2"][1::25]:
        fitted = fit(FORMATS[option.format], site, site_weight(model, site), two_sided, option.ranks).error
        assert fitted <= option.error + 1e-6
        if option.format == "svd":
            assert fitted == pytest.approx(option.error, rel=1e-6)


def test_only_the_asked_formats(net: tuple[nn.Module, Statistics]) -> None:
    model, stats = net
    curves = profile(model, stats, formats=["tucker2"])
    assert {option.format for curve in curves.values() for option in curve} == {"dense", "tucker2"}
    assert [option.format for option in curves["head"]] == ["dense"]


def test_one_name_needs_no_list(net: tuple[nn.Module, Statistics]) -> None:
    assert profile(*net, formats="svd", only="block1.conv1") == profile(*net, formats=["svd"], only=["block1.conv1"])
    curves = profile(*net, formats="svd", only="block1.conv1")
    assert {name for name, curve in curves.items() if len(curve) > 1} == {"block1.conv1"}


def test_an_unknown_site_is_named(net: tuple[nn.Module, Statistics]) -> None:
    for only in ("steam", ["head", "steam"]):
        with pytest.raises(ValueError, match="only: there is no site 'steam'; near names are: stem"):
            profile(*net, only=only)


def test_a_site_that_has_to_stay_dense_has_one_option() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(72, 20))
    sites = find(model, torch.zeros(1, 8, 5, 5))
    curves = profile(model, sites, metric="weight")
    assert curves["0"] == (dense_option(sites["0"]),)
    assert len(curves["2"]) > 1


def test_ranks_are_rounded(net: tuple[nn.Module, Statistics]) -> None:
    model, stats = net
    for name, curve in profile(model, stats, round_to=4).items():
        for option in curve[1:]:
            limits = FORMATS[option.format].limits(stats.sites[name])
            assert all(r % 4 == 0 or r == limit for r, limit in zip(option.ranks, limits, strict=True))


def test_ranks_fit_the_engine(net: tuple[nn.Module, Statistics]) -> None:
    model, stats = net
    engine = RooflineEngine(Device(name="paper", peak=1e9, bandwidth=1e12, tile=16))
    for name, curve in profile(model, stats, engine=engine).items():
        step = grid_of(engine, model).step(stats.sites[name])
        for option in curve[1:]:
            limits = FORMATS[option.format].limits(stats.sites[name])
            assert all(rank in steps(limit, step) for rank, limit in zip(option.ranks, limits, strict=True))


def test_formats_fit_the_engine(net: tuple[nn.Module, Statistics]) -> None:
    model, stats = net
    found = {
        engine: {option.format for curve in profile(model, stats, engine=engine).values() for option in curve}
        for engine in ("torch", "onnxruntime")
    }
    assert found["onnxruntime"] - found["torch"] == {"cp3"}


@pytest.mark.parametrize("wrong", [0, -8, True, "8", 2.0])
def test_a_step_that_is_none(net: tuple[nn.Module, Statistics], wrong: Any) -> None:
    with pytest.raises(ValueError, match="round_to must be"):
        profile(*net, round_to=wrong)


def test_complaints(net: tuple[nn.Module, Statistics]) -> None:
    model, stats = net
    with pytest.raises(ValueError, match="unknown format 'parafac'"):
        profile(model, stats, formats=["svd", "parafac"])
    with pytest.raises(ValueError, match="no format given"):
        profile(model, stats, formats=[])
    with pytest.raises(
        ValueError,
        match="unknown metric 'fischer'; did you mean fisher",
    ):
        profile(model, stats, metric="fischer")
    with pytest.raises(ValueError, match=r'needs statistics: .* or metric="weight"'):
        profile(model, stats.sites)
    part = Statistics({"stem": stats["stem"]}, sites=stats.sites, samples=1)
    with pytest.raises(ValueError, match=r"hold nothing for site 'block1.conv1'"):
        profile(model, part)


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="site '0': the weight holds NaN"):
        profile(model, find(model, torch.zeros(1, 8)), metric="weight")


def test_curves_do_not_depend_on_the_order_of_the_formats() -> None:
    """What is fitted is compared with closed forms, also where the user names it first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3))
    with torch.no_grad():  # svd has this weight at rank 2
        model[0].weight.copy_((torch.randn(12, 2) @ torch.randn(2, 72)).reshape(12, 8, 3, 3))  # type: ignore[operator]
    sites = find(model, torch.randn(1, 8, 8, 8))

    def used(formats: Any) -> list[set[str]]:
        curves = profile(model, sites, formats=formats, metric="weight").values()
        return [{option.format for option in curve} for curve in curves]

    assert used("cp3") == [{"dense", "cp3"}, {"dense", "cp3"}]
    assert used(["svd", "cp3"]) == used(["cp3", "svd"])
    for names in (("svd", "cp3"), ("spatial_svd", "cp3", "kronecker"), ("slr", "tucker2", "cp3")):
        first, *others = [profile(model, sites, formats=order, metric="weight") for order in permutations(names)]
        assert all(curves == first for curves in others)


def test_the_order_of_curves_puts_closed_forms_first() -> None:
    names = [format.name for format in in_order(list(FORMATS.values())[::-1])]
    assert names == list(FORMATS)
    estimates = [FORMATS[name].estimates for name in names]
    assert estimates == sorted(estimates)


def test_formats_are_names_objects_or_both(net: tuple[nn.Module, Statistics]) -> None:
    model, stats = net

    class Named(SVD):
        name = "named"

    only: dict[str, Any] = {"only": "head"}
    usual = profile(model, stats, formats=["svd", "tucker2"], **only)
    assert profile(model, stats, formats=[FORMATS["tucker2"], "svd"], **only) == usual
    assert profile(model, stats, formats={"svd": SVD(), "tucker2": FORMATS["tucker2"]}, **only) == usual
    own = profile(model, stats, formats=Named(), **only)["head"]
    assert [option.ranks for option in own] == [option.ranks for option in usual["head"] if option.format != "tucker2"]
    with pytest.raises(ValueError, match="the format under the name 'svd' is called 'named'; use that name"):
        profile(model, stats, formats={"svd": Named()})
    with pytest.raises(ValueError, match="no format given"):
        profile(model, stats, formats=())
