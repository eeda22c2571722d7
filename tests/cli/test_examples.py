"""The programs in examples/ run as they are."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import rankwise.demo

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example_runs(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    # A network that is hardly trained goes through the same steps.
    monkeypatch.setattr(rankwise.demo, "EPOCHS", 1)
    runpy.run_path(str(file), run_name="__main__")
    assert capsys.readouterr().out
