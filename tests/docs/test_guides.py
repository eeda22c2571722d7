"""The code blocks of the guides run, page by page, from top to bottom; and pages quote only what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
NEEDS = {"phone": "executorch", "browser": "transformers"}
_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.stem in NEEDS:
        pytest.importorskip(NEEDS[page.stem])
    monkeypatch.chdir(tmp_path)
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks
    scope: dict[str, object] = {"__name__": page.stem}
    with torch.random.fork_rng():
        for number, block in enumerate(blocks):
            exec(compile(block, f"{page.name}, block {number + 1}", "exec"), scope)


def test_a_policy_is_calibrated_best_by_its_own_states(tmp_path: Path) -> None:
    blocks = _BLOCK.findall((DOCS / "guides" / "policy.md").read_text(encoding="utf-8"))
    scope: dict[str, object] = {}
    with torch.random.fork_rng():
        for block in blocks:
            exec(block, scope)
    lost = scope["lost"]
    assert isinstance(lost, dict)
    assert lost["own"] < 0.5 * lost["noise"]


def test_troubleshooting_quotes_real_messages() -> None:
    """Each heading below "Messages" is found in a text of the source."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### (.+)$", page, re.MULTILINE)
    source = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS.parent / "src").rglob("*.py"))
    assert len(quoted) >= 7
    assert [words for words in quoted if words not in source] == []
