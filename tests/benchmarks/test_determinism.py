"""The benchmark of determinism runs, and sees what it is there to see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.determinism import BATCH, OTHER_BATCH, ROUNDING, Made, Setting, compared, in_a_process, results

pytestmark = pytest.mark.usefixtures("one_thread")


SOME = ("collect", "spatial_svd, sequential", "int8+entropy")


def test_a_few_rows_keep_their_promise(tmp_path: Path) -> None:
    """The same bits in another process; rounding in other batches, where what is held out must stay the same."""
    made = {"first": dict(results(0, BATCH, SOME)), "batches": dict(results(0, OTHER_BATCH, SOME))}
    made["again"] = in_a_process(Setting(torch.get_num_threads(), BATCH), 0, SOME, tmp_path)
    made["threads"] = made["threads again"] = made["again"]  # more threads are for the slow test
    rows = compared(made)
    assert len(rows) == len(SOME)
    assert not [row for row in rows if row["verdict"] != "right"]


@pytest.mark.slow
def test_all_rows_keep_their_promise() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.determinism", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr


def test_what_differs_is_told() -> None:
    W = torch.randn(4, 4, dtype=torch.float64)
    good = {"svd": Made("a", {"0": W})}
    processes = ("first", "again", "threads", "threads again", "batches")

    def verdict(**other: Made) -> str:
        made = dict.fromkeys(processes, good) | {which: {"svd": each} for which, each in other.items()}
        return compared(made)[0]["verdict"]

    assert verdict() == "right"
    tipped = {which: {"slr3": Made("a", {"0": W})} for which in processes}
    tipped["batches"] = {"slr3": Made("b", {"0": 2 * W})}
    assert compared(tipped)[0] | {"batches": "(1.0e+00)", "verdict": "right"} == compared(tipped)[0]
    tipped["again"] = tipped["batches"]
    assert compared(tipped)[0]["verdict"] == "BROKEN"
    assert verdict(batches=Made("b", {"0": W * (1 + ROUNDING / 2)})) == "right"
    assert verdict(batches=Made("b", {"0": W * (1 + 2 * ROUNDING)})) == "BROKEN"
    assert verdict(threads=Made("b", {"1": W}), **{"threads again": Made("b", {"1": W})}) == "BROKEN"
    assert verdict(again=Made("b", {"0": W})) == "BROKEN"
    assert verdict(threads=Made("b", {"0": W})) == "BROKEN"  # not what "threads again" gave
    assert verdict(batches=Made("b", {"0": W * torch.nan})) == "BROKEN"
