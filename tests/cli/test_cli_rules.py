"""Rules, several budgets, targets and lists of budgets on the command line."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.cli.picture import line_picture, ticks

PLAN = ("plan", "nets.py:build", "data.npz", "--weights", "net.pt", "--engine", "none", "--json", "-")
PARETO = (
    "pareto",
    "nets.py:build",
    "data.npz",
    "--weights",
    "net.pt",
    "--engine",
    "none",
    "--json",
    "-",
    "-o",
    "plans",
)


def test_several_budgets(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(*PLAN, "--keep", "macs=0.6", "--keep", "params=0.5")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)["plan"]
    assert plan["keep"] == {"macs": 0.6, "params": 0.5}
    assert all(plan["planned"][unit] <= share * plan["dense"][unit] for unit, share in plan["keep"].items())


def test_a_rule_with_settings_and_no_budget(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(*PLAN, "--rule", "energy:share=0.95", "--formats", "svd")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)["plan"]
    assert (plan["rule"], plan["keep"]) == ("energy:share=0.95", {})
    assert all(row["error"] <= 0.05 + 1e-9 for row in plan["rows"])
    assert yaml.safe_load(Path("plan.yaml").read_text())["rule"] == "energy:share=0.95"


def test_a_rule_that_tries_plans_and_a_floor(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(*PLAN, "--rule", "sensitivity:probes=2", "--floor-rule", "stable_rank", "--keep", "macs=0.7")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)["plan"]
    assert plan["rule"] == "sensitivity:probes=2"
    assert any("loss" in row["why"] for row in plan["rows"])


def test_a_search_that_is_kept_in_a_file(project: Path, cli: Callable[..., Any]) -> None:
    pytest.importorskip("optuna", reason="the extra search is not installed")
    words = (*PLAN, "--rule", "bayesian:trials=3,study=search.db", "--keep", "macs=0.7")
    first, again = cli(*words), cli(*words)
    assert first.exit_code == again.exit_code == 0, first.output
    assert Path("search.db").exists()
    assert json.loads(first.stdout)["plan"] == json.loads(again.stdout)["plan"]
    other = cli(*words[:-1], "macs=0.6")
    assert other.exit_code == 2
    assert "is of other budget than asked for" in " ".join(other.stderr.split())


def test_ties(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(*PLAN, "--keep", "macs=0.7", "--tie", "[03]")
    assert result.exit_code == 2
    assert "sites '0' and '3' cannot be tied by '[03]'" in " ".join(result.stderr.split())


def test_the_smallest_network_within_a_loss(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(*PLAN, "--target-drop", "20", "--minimise", "params", "--test", "pictures", "--size", "8")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)["plan"]
    assert plan["planned"]["params"] < plan["dense"]["params"]
    assert "target: at most 20 points of accuracy lost on pictures" in result.stderr
    assert "drop" in result.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--rule knapsack needs a budget: --keep macs=0.5"),
        (["--rule", "minmax", "--keep", "macs=0.5"], "unknown rule 'minmax'; did you mean minimax"),
        (["--keep", "macs=0.5", "--floor-rule", "minimax"], "--floor-rule 'minimax': rule 'minimax' cannot be a floor"),
        (["--keep", "macs=0.5", "--keep", "macs=0.4"], "there is a macs budget already"),
        (["--keep", "macs=0.0001", "--keep", "params=0.5"], "macs (0.000 of dense) cannot be met"),
    ],
)
def test_complaints(project: Path, cli: Callable[..., Any], options: list[str], message: str) -> None:
    result = cli(*PLAN, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_pareto_writes_plans_that_lie_inside_each_other_and_a_picture(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(*PARETO, "--at", "0.5,0.9,0.7")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [row["keep"] for row in document["rows"]] == [0.9, 0.7, 0.5]
    assert all(row["macs_ratio"] <= row["keep"] for row in document["rows"])
    errors = [row["error"] for row in document["rows"]]
    assert errors == sorted(errors)
    large, small = (yaml.safe_load(Path(f"plans/plan-macs-{share}.yaml").read_text()) for share in (0.9, 0.5))
    for before, after in zip(large["rows"], small["rows"], strict=True):
        if before["format"] != "dense":
            assert after["format"] == before["format"]
            assert all(a <= b for a, b in zip(after["ranks"], before["ranks"], strict=True))
    ElementTree.parse("plans/pareto.svg")


def test_pareto_measures(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(*PARETO, "--at", "0.8,0.4", "--along", "params", "--measure", "--own", "--rule", "minimax")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert all(0 <= row["agreement"] <= 100 for row in rows)
    assert all(row["params_ratio"] <= row["keep"] for row in rows)
    assert "agreement, 5 classes" in Path("plans/pareto.svg").read_text()
    assert cli(*PARETO, "--at", "0.5,2").exit_code == 2


def test_pictures() -> None:
    picture = line_picture([(0.9, 0.1), (0.5, 0.4), (0.3, 1.9)], x="a < b", y="errors & more")
    root = ElementTree.fromstring(picture)
    circles = [element for element in root if element.tag.endswith("circle")]
    assert len(circles) == 3
    across = [float(circle.get("cx", "nan")) for circle in circles]
    upward = [float(circle.get("cy", "nan")) for circle in circles]
    assert across == sorted(across, reverse=True)
    assert upward == sorted(upward, reverse=True)  # larger values are higher up
    assert {text.text for text in root if text.tag.endswith("text")} >= {"a < b", "errors & more"}
    assert ticks([3.0, 3.0]) == [3.0, 4.0]
    assert ticks([0.0, 0.0])[0] == 0.0
