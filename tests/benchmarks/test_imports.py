"""Every benchmark can be imported: what it takes from the package is there."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_it_can_be_imported(name: str) -> None:
    pytest.importorskip("torchvision")
    importlib.import_module(f"benchmarks.{name}")
