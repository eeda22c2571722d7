"""`verify`: what is whole says what it is, what is not says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.nets import batches_of
from torch import nn
from typer.testing import CliRunner

import rankwise as rw
from rankwise.cli.app import app
from rankwise.training.checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind."""
    folder = tmp_path_factory.mktemp("made")
    model, data = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)), batches_of(8, 16)
    small, report = rw.compress(model, data, keep={"macs": 0.7}, checkpoint=folder / "work")
    for storage in ("plain", "int8+entropy"):
        rw.save(small, folder / storage, plan=report.plan, storage=storage)
    report.plan.save(folder / "plan.yaml")
    rw.collect(model, data).save(folder / "stats")
    write_checkpoint(folder / "run.pt", {"seed": 0}, {"step": 7, "model": dict(small.state_dict())})
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("plain", "artifact"),
        ("plain/rankwise.json", "artifact"),
        ("int8+entropy", "artifact"),
        ("plan.yaml", "plan"),
        ("stats", "statistics"),
        ("run.pt", "checkpoint of a training"),
        ("work", "checkpoint of a compression"),
    ],
)
def test_what_is_whole(name: str, kind: str, made: Path) -> None:
    found = rw.verify(made / name)
    assert found.kind == kind
    assert found.facts
    assert not found.notes


@pytest.mark.parametrize("name", ["plain", "int8+entropy", "plan.yaml", "stats", "run.pt", "work"])
def test_what_is_damaged(name: str, made: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / name
    (shutil.copytree if (made / name).is_dir() else shutil.copy)(made / name, copy)
    for path in sorted(copy.rglob("*")) if copy.is_dir() else [copy]:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=path.name):
            rw.verify(copy)
        path.write_bytes(content)
    rw.verify(copy)


def test_what_is_nothing_of_ours(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path, message in (
        (tmp_path / "nowhere", "there is no .*nowhere"),
        (tmp_path, "is not an artifact"),
        (tmp_path / "notes.txt", "was not written by Rankwise, or is damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            rw.verify(path)


def test_notes(made: Path, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    rw.save(model, tmp_path / "out")
    (tmp_path / "out" / ".rankwise.tmp-0123abcd").mkdir()
    notes = " ".join(rw.verify(tmp_path / "out").notes)
    assert "1 tensors hold numbers that are not finite, first '0.weight'" in notes
    assert ".rankwise.tmp-0123abcd belongs to a run that" in notes


def test_the_command(made: Path) -> None:
    good = CliRunner().invoke(app, ["verify", str(made / "plain"), "--json", "-"])
    assert good.exit_code == 0
    assert '"kind": "artifact"' in good.output
    assert CliRunner().invoke(app, ["verify", str(made)]).exit_code == 2
