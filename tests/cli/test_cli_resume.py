"""`rankwise compress` that is stopped and goes on: the same artifact, and no litter."""

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

import pytest

import rankwise as rw
from rankwise.work import MANIFEST, Part, Work

pytestmark = pytest.mark.usefixtures("one_thread")

NET = ("nets.py:build", "data.npz", "--weights", "net.pt")
PINS = ("--pin", "0=tucker2:6,2", "--pin", "3=svd:5", "--pin", "7=svd:6")
COMPRESS = ("compress", *NET, "--keep", "macs=0.5", *PINS, "--engine", "none", "--engines", "none")
KEPT = ("--checkpoint", "work")

# A network that waits, when two layers are kept, for as long as there is a file "wait".
WAITING = """
import time
from pathlib import Path

import nets
from torch import nn


class Waits(nn.Module):
    def forward(self, x):
        while Path("wait").exists() and len(list(Path("work").glob("layer-*"))) >= 2:
            time.sleep(0.02)
        return x


def build():
    network = nets.build()
    network[4] = nn.Sequential(nn.ReLU(), Waits())
    network[8] = nn.Sequential(nn.ReLU(), Waits())
    return network
"""


class StoppedError(Exception):
    """What stops a run."""


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Let the next run stop after a part of that kind was kept, "" for never; gives the parts that it keeps."""
    keep = Work.keep

    def set_to(kind: str) -> list[str]:
        kept: list[str] = []

        def keeps(self: Work, key: str, part: Part[Any], value: Any) -> None:
            keep(self, key, part, value)
            kept.append(key.partition(" ")[0])
            if part.name == kind:
                raise StoppedError

        monkeypatch.setattr(Work, "keep", keeps)
        return kept

    return set_to


def layers_kept() -> int:
    """Layers that the checkpoint knows of; their files are there a moment earlier."""
    manifest = Path("work") / MANIFEST
    return (
        sum(key.startswith("layer ") for key in json.loads(manifest.read_text())["files"]) if manifest.exists() else 0
    )


def tensors(folder: str) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_killed_and_resumed(how: str, project: Path, cli: Callable[..., Any]) -> None:
    Path("waiting.py").write_text(WAITING)
    command = ["compress", "waiting.py:build", *COMPRESS[2:]]
    assert cli(*command, "-o", "whole").exit_code == 0
    Path("wait").touch()
    words = [sys.executable, "-m", "rankwise", *command, "-o", "out", *KEPT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        until = time.monotonic() + 120
        while layers_kept() < 2 and run.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        assert run.poll() is None, run.communicate()[0]
        run.send_signal(getattr(signal, how))
        said = run.communicate()[0]
    if how == "SIGTERM":
        assert run.returncode == 143
        there = "checkpoint work holds statistics, curves, plan, 2 factorised layers"
        assert f"stopped by SIGTERM: {there}; the same command with --resume resumes from there" in said
    Path("wait").unlink()
    assert not Path("out").exists()
    assert len(list(Path("work").glob("layer-*"))) == 2
    result = cli(*command, "-o", "out", *KEPT, "--resume")
    assert result.exit_code == 0, result.output
    assert "resuming from checkpoint work, which has statistics, curves, plan, 2 factorised layers" in result.stdout
    assert tensors("out") == tensors("whole")
    assert Path("out/plan.yaml").read_text() == Path("whole/plan.yaml").read_text()
    assert not Path("work").exists()


STORED = ("--method", "one-shot", "--stats", "old.stats")
WRITTEN = ("--method", "one-shot", "--stats", "new.stats")


@pytest.mark.parametrize(
    "kind, options",
    [
        *[(kind, ()) for kind in ("statistics", "curves", "plan", "layer")],
        ("statistics", WRITTEN),
        ("layer", STORED),
        ("layer", ("--rule", "sensitivity", "--fold", "--storage", "entropy")),
        ("layer", ("--pin", "9=slr:k=3,sr=0.5,rr=0.5", "--importance", "cost")),
    ],
)
def test_stopped_after_a_part(
    kind: str, options: tuple[str, ...], project: Path, cli: Callable[..., Any], stop: Callable[[str], list[str]]
) -> None:
    if options == STORED:
        assert cli("collect", *NET, "--seed", 4, "--samples", 20, "-o", "old.stats").exit_code == 0
    wanted = stop("")
    assert cli(*COMPRESS, *options, "-o", "whole", *KEPT).exit_code == 0
    Path("new.stats").unlink(missing_ok=True)
    everything = stop(kind)
    stopped = cli(*COMPRESS, *options, "-o", "out", *KEPT)
    assert stopped.exit_code == 1
    assert "StoppedError" in stopped.stderr
    rest = stop("")
    result = cli(*COMPRESS, *options, "-o", "out", *KEPT, "--resume", "--json", "out.json")
    assert result.exit_code == 0, result.output
    assert tensors("out") == tensors("whole")
    assert rw.artifact.read("out").seen == rw.artifact.read("whole").seen
    assert rw.artifact.read("out").plan == rw.artifact.read("whole").plan
    assert everything + rest == wanted  # nothing is done twice
    assert Path("new.stats").exists() == (options == WRITTEN)
    assert not Path("work").exists()


def test_plans_are_not_tried_again(
    project: Path, cli: Callable[..., Any], stop: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--target-drop", "30", "--test", "data.npz", "-o", "out", *KEPT)
    command = ("compress", *NET, "--engines", "none", *options)
    stop("plan")
    assert cli(*command).exit_code == 1
    stop("")

    def fails(*_: Any) -> float:
        raise AssertionError("a plan was tried")

    monkeypatch.setattr(rw.evaluate.Trials, "__call__", fails)
    result = cli(*command, "--resume")
    assert result.exit_code == 0, result.output


def test_a_run_without_a_stop_leaves_nothing(project: Path, cli: Callable[..., Any]) -> None:
    Path("work").mkdir()
    before = set(project.iterdir())
    result = cli(*COMPRESS, "-o", "out", *KEPT, "--resume")
    assert result.exit_code == 0, result.output
    assert "there is no checkpoint work yet: starting from the beginning" in result.stderr
    assert set(project.iterdir()) - before <= {project / "out", project / "__pycache__"}
    assert not Path("work").exists()


def test_what_fails_after_the_work_costs_none_of_it(
    project: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rankwise.artifact.save", fails)
        assert cli(*COMPRESS, "-o", "out", *KEPT).exit_code == 2
    text = json.loads((project / "work" / MANIFEST).read_text())
    assert sum(key.startswith("layer") for key in text["files"]) >= 3
    assert cli(*COMPRESS, "-o", "out", *KEPT, "--resume").exit_code == 0
    assert not Path("work").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        ((*COMPRESS, "-o", "out", "--resume"), "--resume needs a folder to resume from: --checkpoint FOLDER"),
        ((*COMPRESS, "-o", "out", "--checkpoint", "out"), "--checkpoint out lies in -o out"),
        ((*COMPRESS, "-o", "out", "--checkpoint", "out/work"), "--checkpoint out/work lies in -o out"),
        ((*COMPRESS, "-o", "out", "--checkpoint", "pictures"), "checkpoint pictures is not empty"),
        ((*COMPRESS, "-o", "out", "--checkpoint", "net.pt"), "checkpoint net.pt is a file"),
        ((*COMPRESS, "-o", "out", *KEPT), "checkpoint work exists; resume from it, or delete it"),
        ((*COMPRESS, "-o", "out", *KEPT, "--resume", "--seed", 1), "seed 0 there, 1 here"),
        ((*COMPRESS, "-o", "out", *KEPT, "--resume", "--rule", "uniform"), "rule 'knapsack' there, 'uniform' here"),
        ((*COMPRESS, "-o", "out", *KEPT, "--resume", "--batch", 8), "data "),
        ((*COMPRESS, "-o", "out", *KEPT, "--resume", "--method", "one-shot"), "method 'sequential' there, 'one-shot'"),
        ((*COMPRESS, "--keep", "params=0.9", "-o", "out", *KEPT, "--resume"), "keep {'macs': 0.5} there"),
        ((*COMPRESS, "-o", "out", *KEPT, "--resume", "--fold"), "fold False there, True here"),
    ],
)
def test_errors(
    words: tuple[Any, ...], message: str, project: Path, cli: Callable[..., Any], stop: Callable[[str], list[str]]
) -> None:
    stop("statistics")
    assert cli(*COMPRESS, "-o", "out", *KEPT).exit_code == 1
    stop("")
    result = cli(*words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not Path("out").exists()
