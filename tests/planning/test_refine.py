"""Errors of quick fits give way to those of thorough ones where a plan would use them."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.plan import DENSE, Option
from rankwise.planning.planner import Planner
from rankwise.planning.profile import site_metric
from rankwise.planning.refine import NEAR, refined
from rankwise.planning.request import Request

KEEP = {"macs": 0.4}
REQUEST = Request(rule=rw.get_rule("knapsack"), keep=KEEP)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Conv2d(16, 20, 3), nn.Flatten(), nn.Linear(320, 10))


@pytest.fixture(scope="module")
def sites(network: nn.Module) -> rw.Sites:
    return rw.find(network, torch.randn(1, 12, 8, 8))


def planner_of(network: nn.Module, sites: rw.Sites, *formats: str) -> Planner:
    return Planner.of(network, sites, metric="weight", formats=formats, round_to=1)


def with_fits(planner: Planner, shares: dict[str, float]) -> tuple[Planner, list[tuple[str, str]]]:
    """The planner with fits whose errors are shares of what the curves say, and a list of the fits that were made."""
    original = {name: {(o.format, o.ranks): o.error for o in options} for name, (options, _) in planner.options.items()}
    made: list[tuple[str, str]] = []

    def fitted(name: str, option: Option) -> float:
        made.append((name, option.format))
        return shares[option.format] * original[name][option.format, option.ranks]

    return replace(planner, reached=fitted), made


def errors(planner: Planner, site: str, format: str) -> torch.Tensor:
    return torch.tensor([o.error for o in planner.options[site][0] if o.format == format], dtype=torch.float64)


def test_curves_with_closed_forms_are_left_alone(network: nn.Module, sites: rw.Sites) -> None:
    planner, made = with_fits(planner_of(network, sites, "svd", "tucker2"), {"svd": 0.5, "tucker2": 0.5})
    assert refined(planner, [REQUEST]) is planner
    assert not made


def test_a_curve_goes_through_the_fit_and_is_fitted_once(network: nn.Module, sites: rw.Sites) -> None:
    planner, made = with_fits(planner_of(network, sites, "svd", "cp3"), {"svd": 1.0, "cp3": 0.7})
    better = refined(planner, [REQUEST, replace(REQUEST, keep={"macs": 0.3})])
    assert made
    assert len(set(made)) == len(made)
    for name, format in made:
        before, after = errors(planner, name, format), errors(better, name, format)
        share = {"svd": 1.0, "cp3": 0.7}[format]
        assert (after / before - share).abs().min() < 1e-9
        powers = after.log() / before.log()
        torch.testing.assert_close(powers, powers[:1].expand_as(powers))
        assert (powers >= 1).all()


def test_other_sites_get_the_usual_power(network: nn.Module, sites: rw.Sites) -> None:
    planner, made = with_fits(
        planner_of(network, sites, "svd", "cp3", "kronecker"), {"svd": 1, "cp3": 0.7, "kronecker": 1}
    )
    better = refined(planner, [REQUEST])
    powers = {
        (name, o.format): math.log(o.error) / math.log(before.error)
        for name, (options, _) in better.options.items()
        for o, before in zip(options, planner.options[name][0], strict=True)
        if 0 < before.error < 1
    }
    own = [powers[pair] for pair in made if pair[1] == "cp3"]
    assert own
    others = [power for pair, power in powers.items() if pair[1] == "cp3" and pair not in made]
    assert others == pytest.approx([median(own)] * len(others))
    assert all(power == pytest.approx(1) for (_, format), power in powers.items() if format != "cp3")


def test_a_format_that_was_underrated_is_chosen(network: nn.Module, sites: rw.Sites) -> None:
    planner = planner_of(network, sites, "spatial_svd", "cp3")

    def of_cp3(planner: Planner) -> int:
        plan = planner.plan(REQUEST)
        assert plan.planned["macs"] <= KEEP["macs"] * plan.dense["macs"]
        return [row.format for row in plan.factorised].count("cp3")

    def overrated(share: float) -> Planner:
        """The planner with curves of cp3 that are too high."""
        options = {
            name: (tuple(replace(o, error=share * o.error) if o.format == "cp3" else o for o in options), why)
            for name, (options, why) in planner.options.items()
        }
        return replace(planner, options=options)

    least = next(share for share in (1 + step / 20 for step in range(100)) if not of_cp3(overrated(share)))
    assert of_cp3(refined(with_fits(overrated(least), {"spatial_svd": 1.0, "cp3": 0.3})[0], [REQUEST])) > 0


def test_what_is_far_behind_is_not_fitted(network: nn.Module, sites: rw.Sites) -> None:
    planner, made = with_fits(planner_of(network, sites, "svd", "cp3", "kronecker"), {})
    plan = planner.plan(REQUEST)
    planner, made = with_fits(planner, dict.fromkeys(("svd", "cp3", "kronecker"), 1.0))
    refined(planner, [REQUEST])
    for row in plan.factorised:
        assert (row.site, row.format) in made
        for option in planner.options[row.site][0]:
            if option.macs <= row.macs and option.format != DENSE and option.error <= NEAR * row.error:
                assert (row.site, option.format) in made
    assert set(made) < {(row.site, format) for row in plan.factorised for format in ("svd", "cp3", "kronecker")}


def test_a_fit_that_is_worse_than_the_curve_changes_nothing(network: nn.Module, sites: rw.Sites) -> None:
    planner, made = with_fits(planner_of(network, sites, "cp3"), {"cp3": 1.5})
    assert refined(planner, [REQUEST]).plan(REQUEST) == planner.plan(REQUEST)
    assert made


def test_choose_decides_with_the_errors_of_fits(network: nn.Module, sites: rw.Sites) -> None:
    wishes = {"keep": KEEP, "metric": "weight", "formats": ("cp3",), "round_to": 1}

    def too_large(plan: rw.Plan) -> float:
        """By how much the plan's errors are above those of its fits, at worst."""
        fits = [
            (row, rw.FORMATS["cp3"].fit(site, network.get_submodule(row.site).weight, metrics, row.ranks))
            for row in plan.factorised
            if row.format == "cp3"
            for site in [sites[row.site]]
            for metrics in [site_metric(sites, site, "weight", network).inputs]
        ]
        assert fits
        return max(row.error / fit.error - 1 for row, fit in fits if row.error is not None)

    quick, thorough = rw.choose(network, sites, refine=False, **wishes), rw.choose(network, sites, **wishes)
    assert too_large(quick) > 0.02
    assert too_large(thorough) < too_large(quick) / 2
