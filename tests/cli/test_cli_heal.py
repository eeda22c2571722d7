"""`rankwise heal`, from files to files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rankwise as rw

pytestmark = pytest.mark.usefixtures("one_thread")

NET = ("nets.py:build", "data.npz", "--weights", "net.pt")
HEAL = ("heal", *NET, "--artifact", "out", "--epochs", 3, "--batch", 16, "--engines", "none")


@pytest.fixture
def compressed(project: Path, cli: Callable[..., Any]) -> Path:
    result = cli(
        "compress", *NET, "--keep", "macs=0.4", "--formats", "svd", "-o", "out", "--engine", "none", "--engines", "none"
    )
    assert result.exit_code == 0, result.output
    return project / "out"


def test_it_writes_an_artifact_with_figures_before_and_after(compressed: Path, cli: Callable[..., Any]) -> None:
    result = cli(*HEAL, "-o", "healed", "--test", "data.npz", "--json", "h.json")
    assert result.exit_code == 0, result.output
    document = json.loads(Path("h.json").read_text())
    assert document["command"] == "heal"
    told = document["healing"]
    assert told["after"] <= told["before"]
    assert 0 <= told["figures_before"]["agreement"] <= 100
    stored = rw.artifact.read("healed")
    assert stored.figures["healing"]["after"] == told["after"]
    assert stored.plan == rw.artifact.read("out").plan
    assert Path("healed/plan.yaml").is_file()
    assert document["figures"]["compressed"]["macs"] < 0.4 * document["figures"]["dense"]["macs"] + 1
    assert "validation distance" in result.stdout
    assert cli("evaluate", *NET, "--artifact", "healed", "--engines", "none").exit_code == 0


def test_a_finished_run_resumes_to_the_same_network(compressed: Path, cli: Callable[..., Any]) -> None:
    more = ("--checkpoint", "run.pt", "--labels", "--augment", "flip", "--json", "h.json")
    assert cli(*HEAL, "-o", "a", *more).exit_code == 0
    first = healing()
    assert cli(*HEAL, "-o", "b", *more).exit_code == 2
    assert cli(*HEAL, "-o", "b", *more, "--resume").exit_code == 0
    assert healing() == first
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


def healing() -> dict[str, Any]:
    """What the last run says it did, without the time it took."""
    told = json.loads(Path("h.json").read_text())["healing"]
    del told["seconds"]
    return told


@pytest.mark.parametrize(
    "more, message",
    [
        (("--resume",), "resume needs a checkpoint"),
        (("--augment", "spin"), "'spin' is not one of flip, crop, mixup"),
        (("--train", "some"), "train is 'some'"),
        (("--blocks", "2"), "blocks is 2"),
        (("--rate", "0"), "rate is 0"),
    ],
)
def test_errors(compressed: Path, cli: Callable[..., Any], more: tuple[str, ...], message: str) -> None:
    result = cli(*HEAL, "-o", "healed", *more)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("healed").exists()


def test_labels_that_are_not_there(compressed: Path, cli: Callable[..., Any]) -> None:
    import numpy as np

    np.savez("bare.npz", images=np.zeros((20, 8, 8, 3), dtype=np.uint8))
    result = cli("heal", "nets.py:build", "bare.npz", "--artifact", "out", "-o", "healed", "--labels")
    assert result.exit_code == 2
    assert "has no labels" in result.stderr
