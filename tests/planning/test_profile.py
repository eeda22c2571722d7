"""Curves: what is offered for each site, at which cost, with which error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.nets import Residual, batches_of, make
from torch import nn

from rankwise import FORMATS, Site, Statistics, collect, find, profile
from rankwise.formats.both_sides import fit
from rankwise.formats.weights import site_weight
from rankwise.plan import dense_option
from rankwise.planning.profile import rank_step, site_metric


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


@pytest.mark.parametrize("metric", ["input", "diagonal", "fisher", "weight"])
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


def test_rank_step() -> None:
    def linear(outputs: int, inputs: int) -> Site:
        return Site(name="fc", kind="linear", weight_shape=(outputs, inputs))

    assert rank_step(linear(128, 200), "auto") == 8
    assert rank_step(linear(127, 4000), "auto") == 1
    assert rank_step(linear(10, 10), 16) == 16
    wide: dict[str, Any] = {"name": "conv", "kind": "conv2d", "weight_shape": (256, 128, 3, 3)}
    assert rank_step(Site(**wide), "auto") == 8
    assert rank_step(Site(**wide, groups=4), "auto") == 1
    for wrong in (0, -8, True, "8", 2.0):
        with pytest.raises(ValueError, match="round_to must be"):
            rank_step(linear(10, 10), wrong)  # type: ignore[arg-type]


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
