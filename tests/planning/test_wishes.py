from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.planning.wishes import Asked, check_wishes


class Untouched:
    """Data that nobody may read."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("the data was read")


class NeverRun(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the network was run")


def network() -> nn.Module:
    return NeverRun(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"keep": 5}, "keep"),
    ({"keep": {}}, "needs a budget"),
    ({"keep": {"macs": 50}}, r'write keep=\{"macs": 0.5\} for 50 %'),
    ({"keep": {"params": 1}}, r'or keep=\{"params": 1.0\} for all of it'),
    ({"keep": {"bytes": 80.0}}, r'write keep=\{"bytes": 0.8\} for 80 %'),
    ({"keep": {"macs": "50%"}}, r'write keep=\{"macs": 0.5\}'),
    ({"keep": {"params": "0.5M"}}, r'write keep=\{"params": 500000\}'),
    ({"keep": {"macs": "half"}}, "a fraction up to 1 or a number above 0, not 'half'$"),
    ({"keep": {"flops": 0.5}}, "unknown budget 'flops'"),
    ({"keep": {"latency": "8"}}, "is not a time such as 8ms"),
    ({"formats": ["svdd"]}, "unknown format 'svdd'"),
    ({"formats": "svdd"}, "unknown format 'svdd'"),
    ({"rule": "knapsak"}, "unknown rule 'knapsak'; did you mean knapsack"),
    ({"rule": "energy:part=3"}, "no setting 'part'"),
    ({"floor_rule": "knapsack"}, "cannot be a floor"),
    ({"metric": "inputs"}, "unknown metric 'inputs'"),
    ({"round_to": 0}, "round_to must be"),
    ({"include": "head*"}, r"pattern 'head\*' matches no site; near names are: 0, 2"),
    ({"ignore": ["0", "1"]}, "pattern '1' matches no site"),
    ({"pin": {"3": "svd:2"}}, "pattern '3' matches no site"),
    ({"pin": {"0": "sdv:2"}}, "unknown format 'sdv'"),
    ({"pin": {"0": "svd"}}, "a pin is"),
    ({"floor": {"0": "8"}}, "must be a rank or a fraction"),
    ({"cap": {"9": 8}}, "pattern '9' matches no site"),
    ({"tie": "conv*"}, r"pattern 'conv\*' matches no site"),
]


@pytest.mark.parametrize(("wishes", "text"), MISTAKES)
def test_mistakes_are_found_before_anything_is_read_or_run(wishes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_wishes(network(), Asked.of(**wishes))
    with pytest.raises(ValueError, match=text):
        rw.compress(network(), Untouched(), **{"keep": {"macs": 0.5}, **wishes})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"method": "sequental"}, "unknown method 'sequental'"),
        ({"shrink": 2.0}, "shrink must be"),
        ({"keep": None}, "needs a budget"),
        ({"rule": "sensitivity"}, "has to try plans: pass evaluate="),
        ({"target_drop": 1.0}, "target_drop and drop go together"),
        ({"minimise": "params"}, "no effect without target_drop"),
        ({"keep": {"latency": 0.5}, "engine": "tpu"}, "unknown engine 'tpu'"),
    ],
)
def test_contradictions_are_found_as_early(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        rw.compress(network(), Untouched(), **{"keep": {"macs": 0.5}, **arguments})


def test_an_argument_that_does_not_exist() -> None:
    with pytest.raises(TypeError, match="format"):
        rw.compress(network(), Untouched(), keep={"macs": 0.5}, format="svd")


def test_the_other_verbs_look_first_as_well() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    sites = rw.find(model, torch.zeros(1, 64))
    plan = rw.choose(model, sites, keep={"macs": 0.5}, metric="weight")
    with pytest.raises(ValueError, match="unknown engine 'graf'"):
        rw.factorise(model, plan, data=Untouched(), engine="graf")
    with pytest.raises(ValueError, match="unknown budget 'mac'"):
        rw.pareto(model, sites, keeps=[{"macs": 0.5}, {"mac": 0.3}], metric="weight")


def test_what_is_right_passes() -> None:
    check_wishes(
        network(),
        Asked.of(
            keep={"macs": 0.5, "params": 3000, "latency": "8ms"},
            formats="auto",
            include=["0", "re:[02]"],
            pin={"2": "dense"},
            floor={"*": 0.1},
            round_to="auto",
        ),
    )
