"""The quick run of the benchmark of rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.rank_rules", "--quick", "--threads", "1", *words]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_rules_and_seeds(tmp_path: Path, networks: Any) -> None:
    rows_file = tmp_path / "rows.json"
    result = run("--parts", "rules", "seeds", "--rules", "knapsack", "uniform", "--json", str(rows_file))
    assert result.returncode == 0, result.stderr
    rows = json.loads(rows_file.read_text())
    assert [(row["part"], row["method"]) for row in rows] == [
        ("rules", "knapsack"), ("rules", "uniform"), ("seeds", "knapsack"), ("seeds", "uniform")
    ]  # fmt: skip
    assert all(row["macs_ratio"] <= 0.5 for row in rows)
    knapsack, uniform = rows[:2]
    assert knapsack["top1"] > uniform["top1"] + 10


@pytest.mark.slow
def test_seeds_need_rivals() -> None:
    result = run("--parts", "seeds")
    assert result.returncode == 2
    assert "name --rivals" in result.stderr
