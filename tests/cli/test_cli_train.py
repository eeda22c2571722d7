"""`rankwise train`, from files to files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rankwise as rw

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN = ("train", "nets.py:build", "data.npz", "--epochs", 4, "--batch", 8, "--keep", "params=0.5", "--engines", "none")


def document() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(Path("t.json").read_text())
    return made


def test_it_writes_an_artifact_with_figures_of_every_step(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(*TRAIN, "-o", "out", "--orthogonal", "soft:0.1", "--test", "data.npz", "--json", "t.json")
    assert result.exit_code == 0, result.output
    made = document()
    assert made["command"] == "train"
    told = made["training"]
    assert told["losses"]["trained"] <= told["losses"]["start"]
    assert set(told["figures_before"]) == {"dense", "cut"}
    assert made["figures"]["compressed"]["params"] <= 0.5 * made["figures"]["dense"]["params"]
    stored = rw.artifact.read("out")
    assert stored.plan == rw.Plan.load("out/plan.yaml")
    assert stored.figures["training"]["deviation"] == told["deviation"]
    assert "top-1 accuracy: trained" in result.stdout
    assert "expanded 100%" in result.stdout
    again = cli("evaluate", "nets.py:build", "data.npz", "--artifact", "out", "--engines", "none", "--json", "-")
    assert json.loads(again.stdout)["figures"]["compressed"]["params"] == made["figures"]["compressed"]["params"]


def test_it_trains_by_a_technique(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(*TRAIN, "-o", "out", "--technique", "maestro:strength=0.01,every=4", "--json", "t.json")
    assert result.exit_code == 0, result.output
    made = document()
    assert made["training"]["deviation"] is None
    assert made["figures"]["compressed"]["params"] <= 0.5 * made["figures"]["dense"]["params"]
    assert rw.artifact.read("out").plan == rw.Plan.load("out/plan.yaml")


def test_killed_by_the_system_it_goes_on_and_ends_with_the_same_network(project: Path, cli: Callable[..., Any]) -> None:
    more = ("--orthogonal", "srip:0.1", "--seed", 3, "--device", "cpu")
    assert cli(*TRAIN, *more, "-o", "whole").exit_code == 0
    rest = [str(part) for part in (*TRAIN, *more, "-o", "out", "--checkpoint", "run.pt", "--resume")]
    process = subprocess.Popen(
        [sys.executable, "-m", "rankwise", *rest], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )
    while not Path("run.pt.expanded").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = cli(*rest)
    assert result.exit_code == 0, result.output
    for name in ("model.safetensors", "plan.yaml"):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()
    assert cli(*TRAIN, *more, "-o", "new", "--checkpoint", "run.pt").exit_code == 2  # it is there already


def test_from_trained_weights_and_named_layers(project: Path, cli: Callable[..., Any]) -> None:
    more = ("--weights", "net.pt", "--expand", "svd", "--orthogonal", "hard", "--ignore", "9", "--calibration", 0)
    result = cli(*TRAIN, *more, "-o", "out", "--json", "t.json", "--checkpoint", "run.pt", "--resume")
    assert result.exit_code == 0, result.output
    assert "there is no checkpoint run.pt yet" in result.stderr
    rows = {row["site"]: row["format"] for row in document()["plan"]["rows"]}
    assert rows["9"] == "dense"
    assert set(rows.values()) == {"dense", "svd"}
    assert document()["training"]["deviation"] < 1e-5


@pytest.mark.parametrize(
    "more, message",
    [
        (("--resume",), "needs a file to resume from"),
        (("--orthogonal", "hard:2"), "orthogonal 'hard:2'"),
        (("--technique", "maestros"), "--technique: unknown technique 'maestros'; did you mean maestro"),
        (("--technique", "maestro", "--expand", "svd"), "--expand belong to orthogonal factors; drop them beside"),
        (("--technique", "maestro:speed=1"), "there is no setting 'speed'"),
        (("--expand", "cp"), "'cp' is not one of"),
        (("--device", "nowhere"), "--device 'nowhere' cannot be used"),
        (("--include", "fc"), "matches no site"),
        (("--keep", "macs=2x"), "--keep"),
        (("--rate", "0"), "rate is 0"),
    ],
)
def test_errors(project: Path, cli: Callable[..., Any], more: tuple[str, ...], message: str) -> None:
    result = cli(*TRAIN, "-o", "out", *more)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("out").exists()


def test_labels_are_needed(project: Path, cli: Callable[..., Any]) -> None:
    np.savez("bare.npz", images=np.zeros((20, 8, 8, 3), dtype=np.uint8))
    result = cli("train", "nets.py:build", "bare.npz", "-o", "out")
    assert result.exit_code == 2
    assert "has no labels" in result.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(project: Path, cli: Callable[..., Any]) -> None:
    result = cli(*TRAIN, "-o", "out", "--device", "cuda")
    assert result.exit_code == 0, result.output
