"""The benchmark of determinism runs, and sees what it is there to see."""

from __future__ import annotations

import subprocess
import sys

import torch
from benchmarks.determinism import ROUNDING, Made, compared


def test_a_few_rows_keep_their_promise() -> None:
    words = ["collect", "choose", "spatial_svd, sequential", "entropy"]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.determinism", "--threads", "1", "--only", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "5 of 5 rows keep their promise" in run.stdout


def test_what_differs_is_told() -> None:
    W = torch.randn(4, 4, dtype=torch.float64)
    good = {"svd": Made("a", {"0": W})}
    processes = ("first", "again", "threads", "threads again", "batches")

    def verdict(**other: Made) -> str:
        made = dict.fromkeys(processes, good) | {which: {"svd": each} for which, each in other.items()}
        return compared(made)[0]["verdict"]

    assert verdict() == "right"
    assert verdict(batches=Made("b", {"0": W * (1 + ROUNDING / 2)})) == "right"
    assert verdict(batches=Made("b", {"0": W * (1 + 2 * ROUNDING)})) == "BROKEN"
    assert verdict(threads=Made("b", {"1": W}), **{"threads again": Made("b", {"1": W})}) == "BROKEN"
    assert verdict(again=Made("b", {"0": W})) == "BROKEN"
    assert verdict(threads=Made("b", {"0": W})) == "BROKEN"  # not what "threads again" gave
    assert verdict(batches=Made("b", {"0": W * torch.nan})) == "BROKEN"
