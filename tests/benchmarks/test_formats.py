"""The quick run of the benchmark of formats."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.formats import FORMATS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow  # a whole run of a benchmark; that it can be imported is a quick test
def test_quick_run_writes_every_table(tmp_path: Path) -> None:
    pytest.importorskip("tensorly")
    command = [
        sys.executable,
        "-m",
        "benchmarks.formats",
        "--quick",
        "--threads",
        "1",
        "--json",
        str(tmp_path / "rows"),
    ]
    words = ["--layers", "synthetic", "planted"]  # the quick run without its real layer
    run = subprocess.run([*command, *words], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "rows").read_text())
    assert {row["table"] for row in rows} == {"formats", "peers", "reference", "speed", "summary"}
    assert {row["format"] for row in rows if row["table"] == "formats"} == set(FORMATS)
    for row in rows:
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float)), row
        if row["table"] == "formats":
            assert 0.25 < row["macs_ratio"] <= 0.5, row
        if row["table"] == "peers" and row["metric"] == "input":
            assert row["sigma"] <= row["peer_sigma"], row
        if row["table"] == "peers" and "equal_error" in row:
            key = "sigma" if row["metric"] == "input" else "weight"
            assert row["equal_error"] <= row["peer_" + key] * 1.0001 + 1e-9, row
        if row["table"] == "reference":
            assert row["worse_by"] < 1, row
    asked = {row["requirement"].split(":")[0]: row for row in rows if row["table"] == "summary"}
    assert {"Sigma-error not above tensorly's", "tucker2", "tt", "Tucker-2 in 10 sweeps"} <= set(asked)
    assert asked["Sigma-error not above tensorly's"]["met"] == "yes"
