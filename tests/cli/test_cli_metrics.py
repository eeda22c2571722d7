"""The metrics and the rule that need gradients, on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise import Plan, Statistics

MODEL = ("nets.py:build", "--weights", "net.pt")
SHAPE = ("--input-shape", "3,8,8")
COMPRESS = ("--keep", "macs=0.6", "-o", "out", "--engine", "none", "--engines", "none")


@pytest.mark.parametrize("metric, method", [("diagonal", "one-shot"), ("fisher", "sequential")])
def test_compress_and_apply_again(project: Path, cli: Callable[..., Any], metric: str, method: str) -> None:
    data = ("compress", MODEL[0], "data.npz", *MODEL[1:], *COMPRESS, "--metric", metric, "--method", method)
    result = cli(*data, "--json", "-")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["plan"]["metric"] == metric
    assert document["figures"]["compressed"]["macs"] <= 0.6 * document["figures"]["dense"]["macs"]
    again = ("apply", MODEL[0], "out/plan.yaml", "data.npz", *MODEL[1:], "-o", "again", "--engines", "none")
    assert cli(*again, "--method", method).exit_code == 0
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_a_file_with_gradients_is_enough(project: Path, cli: Callable[..., Any]) -> None:
    collected = cli("collect", MODEL[0], "data.npz", *MODEL[1:], "-o", "s", "--gradients", "--json", "-")
    assert collected.exit_code == 0, collected.output
    assert json.loads(collected.stdout)["gradients"]
    assert all(moments.gradients is not None for moments in Statistics.load("s").values())
    for metric, rule in (("fisher", "fisher"), ("weight", "fisher"), ("fisher", "knapsack")):
        options = ("--stats", "s", *SHAPE, "--metric", metric, "--rule", rule, "--keep", "macs=0.6", "--formats", "svd")
        result = cli("plan", *MODEL, *options)
        assert result.exit_code == 0, result.output
        plan = Plan.load("plan.yaml")
        assert (plan.metric, plan.rule) == (metric, rule)
        assert ("predicted loss" in plan.factorised[0].why) == (rule == "fisher")
    again = ("apply", MODEL[0], "plan.yaml", *MODEL[1:], "--stats", "s", *SHAPE, "-o", "out", "--engines", "none")
    assert cli(*again).exit_code == 0


def test_a_rule_that_needs_gradients_collects_them(project: Path, cli: Callable[..., Any]) -> None:
    rule = ("--rule", "fisher", "--keep", "macs=0.6", "--formats", "svd")
    result = cli("plan", MODEL[0], "data.npz", *MODEL[1:], "--stats", "s", *rule)
    assert result.exit_code == 0, result.output
    assert all(moments.gradients is not None for moments in Statistics.load("s").values())


def test_what_is_missing_is_named(project: Path, cli: Callable[..., Any]) -> None:
    assert cli("collect", MODEL[0], "data.npz", *MODEL[1:], "-o", "s").exit_code == 0
    for options in (("--metric", "fisher"), ("--rule", "fisher")):
        result = cli("plan", *MODEL, "--stats", "s", *SHAPE, "--keep", "macs=0.6", *options)
        assert result.exit_code == 2
        told = " ".join(result.stderr.split())
        assert "the statistics hold no gradients at its output" in told
        assert "rankwise collect --gradients" in told
    result = cli("plan", *MODEL, *SHAPE, "--keep", "macs=0.6", "--metric", "weight", "--rule", "fisher")
    assert result.exit_code == 2
    assert "needs data: name DATA" in " ".join(result.stderr.split())
