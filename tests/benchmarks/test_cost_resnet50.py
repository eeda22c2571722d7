"""The cost of compressing a ResNet-50: how ratios and limits are made of the steps; the steps take minutes."""

from __future__ import annotations

import argparse
import json
import subprocess
from typing import Any

import pytest
from benchmarks import cost_resnet50
from benchmarks.cost_resnet50 import YARDSTICK


def test_ratios_are_to_the_mean_of_two_yardsticks(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([10.0, 36.0, 90.0, 14.0])
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        what = command[-4].removeprefix("--step=")
        return argparse.Namespace(stdout=f"$ header\n{json.dumps({'what': what, 'seconds': next(seconds)})}\n")

    monkeypatch.setattr(subprocess, "run", run)
    given = argparse.Namespace(methods=["one-shot", "sequential"], samples=8, seed=1, threads=1)
    rows = cost_resnet50.measure(given)
    assert [row["what"] for row in rows] == [YARDSTICK, "one-shot", "sequential", YARDSTICK]
    assert [row["ratio"] for row in rows] == [10 / 12, 3.0, 7.5, 14 / 12]
    assert [row.get("limit") for row in rows] == [None, 5.0, 10.0, None]
    assert commands[1][-3:] == ["--samples=8", "--seed=1", "--threads=1"]
