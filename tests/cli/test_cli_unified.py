"""`rankwise unified`, from files to files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rankwise as rw

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = (
    "unified",
    "nets.py:build",
    "data.npz",
    "--weights",
    "net.pt",
    "--formats",
    "svd,cp3",
    "--batch",
    8,
    "--engines",
    "none",
)


@pytest.mark.parametrize("more", [(), ("--labels", "--learn", "distance")])
def test_it_searches_trains_and_writes_an_artifact(
    project: Path, cli: Callable[..., Any], more: tuple[str, ...]
) -> None:
    keep = ("--keep", "params=0.6", "--epochs", 2, "--rounds", 1)
    result = cli(*RUN, *keep, *more, "-o", "out", "--json", "t.json")
    assert result.exit_code == 0, result.output
    made = json.loads(Path("t.json").read_text())
    assert made["command"] == "unified"
    assert set(made["unified"]["stages"]) == {"search 1", "tuned"}
    assert made["figures"]["compressed"]["params"] <= 0.6 * made["figures"]["dense"]["params"]
    assert rw.artifact.read("out").plan == rw.Plan.load("out/plan.yaml")
    assert "rounds of search" in result.stdout


def test_mistakes(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(*RUN, "-o", "out")
    assert result.exit_code == 2
    assert "--keep" in result.output
    result = cli(*RUN, "--keep", "params=0.6", "--aim", "sum", "-o", "out")
    assert result.exit_code == 2
    assert "aim is 'sum'" in result.output
