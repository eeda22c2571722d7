"""Layers that were fitted before are put in as they are, and what comes after them is the same to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.factorisation_nets import CASES, NOISES, Branching, Draws, Language, tokens
from support.nets import batches_of, make, plan_of, same_bits, unchanged
from torch import nn

import rankwise as rw
from rankwise.formats import get_format

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sites that a format was fitted to."""
    names: list[str] = []

    def watched(fit: Any) -> Any:
        def fits(self: Any, site: rw.Site, *rest: Any) -> Any:
            names.append(site.name)
            return fit(self, site, *rest)

        return fits

    for kind in {type(get_format(name)) for name in rw.FORMATS}:
        monkeypatch.setattr(kind, "fit", watched(kind.fit))
    return names


def check(model: nn.Module, plan: rw.Plan, stats: Any, fitted: list[str], first: int = 1, **options: Any) -> None:
    """A run goes on after its `first` layers, and after its last one; what is there is not fitted again."""
    done: dict[str, Any] = {}
    whole = rw.factorise(model, plan, stats, done=done, **options)
    assert set(done) == {row.site for row in plan.factorised}
    for count in {first or len(done), len(done)}:
        rest = dict(list(done.items())[:count])
        fitted.clear()
        with unchanged(model):
            small = rw.factorise(model, plan, stats, done=rest, **options)
        assert same_bits(small, whole)
        assert set(fitted) == set(done) - set(list(done)[:count])
        assert list(rest) == list(done)


@pytest.mark.parametrize("case", CASES)
def test_networks_of_every_pattern(case: str, fitted: list[str]) -> None:
    build, data = CASES[case]
    model, batches = make(build), data()
    stats = rw.collect(model, batches)
    plan = rw.choose(model, stats, keep={"params": 0.55}, include="re:.*", formats="svd")
    check(model, plan, stats, fitted, data=batches, engine="graph")
    check(model, plan, stats, fitted, data=batches, engine="hooks")


@pytest.mark.parametrize("case", ["groups", "decoder", "words"])
def test_nothing_is_other_than_without_it(case: str, fitted: list[str]) -> None:
    build, data = CASES[case]
    model, batches = make(build), data()
    stats = rw.collect(model, batches)
    plan = rw.choose(model, stats, keep={"params": 0.55}, include="re:.*")
    check(model, plan, stats, fitted)
    for options in ({}, {"data": batches}):
        noted: dict[str, Any] = {}
        small = rw.factorise(model, plan, stats, done=noted, **options)
        assert same_bits(small, rw.factorise(model, plan, stats, **options))


@pytest.mark.parametrize("name", rw.FORMATS)
def test_every_format(name: str, fitted: list[str]) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 8), nn.Linear(8, 6),
    )  # fmt: skip
    batches, format = batches_of(16, 4, 6, 6, count=2), get_format(name)
    stats = rw.collect(model, batches)
    halves = {
        site: (name, tuple(max(1, limit // 2) for limit in format.limits(about)))
        for site, about in stats.sites.items()
        if format.refuses(about) is None
    }
    plan = plan_of(stats.sites, halves)
    check(model, plan, stats, fitted, first=0, data=batches)


@pytest.mark.parametrize("metric", ["diagonal", "fisher", "weight"])
def test_every_metric(metric: str, fitted: list[str]) -> None:
    build, data = CASES["concat"]
    model, batches = make(build), data()
    stats = rw.collect(model, batches, gradients=True)
    plan = rw.choose(model, stats, keep={"macs": 0.5}, metric=metric, formats="svd")
    check(model, plan, stats, fitted)
    check(model, plan, stats, fitted, data=batches)


def test_values_that_steer_the_network(fitted: list[str]) -> None:
    model, batches = make(Branching), batches_of(64, 16)
    stats = rw.collect(model, batches)
    plan = plan_of(stats.sites, dict.fromkeys(("first", "second", "third"), ("svd", (3,))))
    check(model, plan, stats, fitted, data=batches)


@pytest.mark.parametrize("bias", [False, True])
def test_an_embedding_and_its_head(bias: bool, fitted: list[str]) -> None:
    model = make(lambda: Language(bias))
    stats = rw.collect(model, tokens())
    plan = plan_of(stats.sites, {"words": ("svd", (5,)), "hidden": ("svd", (4,))})
    check(model, plan, stats, fitted)
    check(model, plan, stats, fitted, data=tokens())


@pytest.mark.parametrize("noise", NOISES)
def test_networks_that_draw_random_numbers(noise: str, fitted: list[str]) -> None:
    model, batches = make(lambda: Draws(NOISES[noise]())), batches_of(64, 24)
    stats = rw.collect(model, batches)
    plan = plan_of(stats.sites, dict.fromkeys(("first", "last"), ("svd", (6,))))
    check(model, plan, stats, fitted, data=batches)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype, fitted: list[str]) -> None:
    build, _ = CASES["chain"]
    model, batches = make(build).to(dtype), [batch.to(dtype) for batch in batches_of(64, 20)]
    stats = rw.collect(model, batches)
    plan = rw.choose(model, stats, keep={"params": 0.55})
    check(model, plan, stats, fitted)
    check(model, plan, stats, fitted, data=batches)


def test_a_layer_that_is_trained_afterwards_stays_in_the_dictionary_as_it_was() -> None:
    model, batches = make(CASES["chain"][0]), batches_of(64, 20)
    stats = rw.collect(model, batches)
    plan, done = rw.choose(model, stats, keep={"params": 0.55}), dict[str, Any]()
    small = rw.factorise(model, plan, stats, done=done)
    again = rw.factorise(model, plan, stats, done=done)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert same_bits(rw.factorise(model, plan, stats, done=done), again)
