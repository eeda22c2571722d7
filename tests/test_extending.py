"""The page about extending shows the examples as they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("write_diffs", ROOT / "docs" / "write_diffs.py")
assert spec is not None
assert spec.loader is not None
write_diffs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(write_diffs)


def test_the_diffs_are_those_of_the_examples() -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    for name in ("own_format", "own_rule", "own_kind"):
        assert write_diffs.diff_of(f"examples/{name}.py") in page
    assert write_diffs.written(page) == page


def test_a_changed_example_is_noticed() -> None:
    page = (ROOT / "docs" / "extending.md").read_text().replace("+class Greedy(Rule):", "+class Gready(Rule):")
    assert write_diffs.written(page) != page
