"""The honesty benchmark runs, and sees what it is there to see."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from benchmarks.honesty_case import rows
from benchmarks.honesty_checks import changed, relative_error, snapshot
from benchmarks.honesty_networks import CASES
from torch import nn


def test_it_has_networks_of_every_kind() -> None:
    assert len(CASES) >= 60
    assert len({(case.kind, case.name) for case in CASES}) == len(CASES)
    assert {"ordinary", "torchvision", "transformers", *"ABCDEFGHI"} <= {case.kind for case in CASES}


@pytest.mark.parametrize(
    "words",
    [
        ["tied by memory"],
        # The same on more networks; each is a whole compression by two methods and budgets.
        pytest.param(["mixture of experts", "parts of a batch"], marks=pytest.mark.slow),
    ],
)
def test_a_few_of_them(words: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.honesty", "--threads", "1", "--only", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = 4 * len(words)
    assert f"{rows} of {rows} rows are right" in run.stdout


@pytest.mark.parametrize("what", ["a value", "an attribute", "a hook", "a flag", "a module"])
def test_a_network_that_was_touched_is_seen(what: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].calls = 3
    before = snapshot(model)
    assert changed(before, snapshot(model)) == []
    if what == "a value":
        with torch.no_grad():
            model[0].weight[0, 0] += 1
    elif what == "an attribute":
        model[0].calls = 4
    elif what == "a hook":
        model[1].register_forward_hook(lambda *_: None)
    elif what == "a flag":
        model[0].bias.requires_grad_(False)
    else:
        model[1] = nn.GELU()
    assert changed(before, snapshot(model))


def test_data_have_few_directions_that_stay() -> None:
    one, two = (rows(200, 32)(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    leading = torch.linalg.svd(one).Vh[:6]
    assert (two @ leading.mT).square().sum() > 0.6 * two.square().sum()
    assert relative_error([one], [one]) == 0
    assert relative_error([one[:5]], [one]) is None
