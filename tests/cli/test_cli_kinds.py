"""The command line on layers of other kinds than those of pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise.plan import Plan

NETS = """
from torch import nn


def build():
    return nn.Sequential(nn.Conv1d(4, 32, 5, padding=2), nn.ReLU(), nn.ConvTranspose1d(32, 16, 4, 2, 1))
"""


def test_inspect_and_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    result = cli("inspect", "nets.py:build", "--input-shape", "4,40", "--json", "-")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["sites"]
    assert [(row["kind"], row["weight_shape"], row["macs"]) for row in rows] == [
        ("conv1d", [32, 4, 5], 40 * 640),
        ("conv_transpose1d", [16, 32, 4], 40 * 2048),
    ]
    given = ("--input-shape", "4,40", "--metric", "weight", "--keep", "macs=0.6", "--engine", "none", "-o", "plan.yaml")
    result = cli("plan", "nets.py:build", *given)
    assert result.exit_code == 0, result.output
    plan = Plan.load("plan.yaml")
    assert [row.site for row in plan.factorised] == ["2"]
    assert plan.planned["macs"] <= 0.6 * 40 * (640 + 2048)
