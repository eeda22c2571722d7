"""The programs in examples/ run as they are."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import rankwise.demo
from rankwise.formats import FORMATS
from rankwise.network.site import KINDS

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example_runs(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    # A network that is hardly trained goes through the same steps.
    monkeypatch.setattr(rankwise.demo, "EPOCHS", 1)
    known = dict(FORMATS), dict(KINDS)
    try:
        runpy.run_path(str(file), run_name="__main__")
    finally:
        for registry, before in zip((FORMATS, KINDS), known, strict=True):
            for name in registry.keys() - before.keys():
                del registry[name]
    assert capsys.readouterr().out
