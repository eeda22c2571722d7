"""`rankwise evaluate --roofline`: every layer against the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_layers_and_limits(project: Path, cli: Callable[..., Any]) -> None:
    command = ("evaluate", "nets.py:build", "data.npz", "--engines", "none", "--roofline")
    ran = cli(*command, "--latency-batch", 2, "--json", "-")
    assert ran.exit_code == 0, ran.stderr
    drawn = json.loads(ran.stdout)["roofline"]
    assert [layer["name"] for layer in drawn["layers"]] == ["0", "3", "7", "9"]
    assert drawn["layers"][0]["macs"] == 2 * 64 * 16 * 27
    assert all(layer["seconds"] > 0 for layer in drawn["layers"])
    assert drawn["limits"]["macs_per_second"] > 0
    assert "achieved" in ran.stderr
    assert "this machine: at most" in ran.stderr
