"""The loops of docs/healing.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_nets import pair

import rankwise as rw
from rankwise.evaluate import divergence

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = Path(__file__).parents[2] / "docs" / "healing.md"


def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code) == 3
    dense, small, x = pair()
    names: dict[str, Any] = {"rw": rw, "torch": torch, "dense": dense, "small": small, "batches": list(x.split(16)) * 4}
    names["held_out_loss"] = lambda model: divergence(dense, model, [x])
    before = names["held_out_loss"](small)
    quick = [part.replace("minutes=10", "minutes=0.01").replace("minutes=1,", "minutes=0.01,") for part in code]
    quick[0] = quick[0].replace('augment="flip,crop,mixup", ', "")
    exec("\n".join(quick), names)
    assert names["report"].after <= names["report"].before
    assert names["held_out_loss"](small) < before
    assert names["held_out_loss"](names["healed"]) < before
