"""A network with fused attention, as a user types it: its projections become layers, also when it is loaded again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))

def build():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    torch.save(torch.randn(32, 5, 16, generator=torch.Generator().manual_seed(0)), "data.pt")
    return tmp_path


def test_compressed_and_evaluated(folder: Path, cli: Callable[..., Any]) -> None:
    done = cli(
        "compress", "nets.py:build", "data.pt", "--keep", "params=0.6", "--engine", "none", "--engines", "none",
        "--include", "layer.*", "--ignore", "*.k_proj", "-o", "out", "--json", "-",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "fused projections are layers now: layer.self_attn" in done.stderr
    found = json.loads(done.stdout)
    formats = {row["site"]: row["format"] for row in found["plan"]["rows"]}
    assert {"layer.self_attn.q_proj", "layer.self_attn.out_proj", "layer.linear2"} <= formats.keys()
    assert formats["layer.self_attn.k_proj"] == "dense"
    assert set(formats.values()) > {"dense"}
    figures = found["figures"]
    assert figures["compressed"]["params"] <= 0.6 * figures["dense"]["params"]
    again = cli("evaluate", "nets.py:build", "data.pt", "--artifact", "out", "--engines", "none", "--json", "-")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["figures"]["compressed"]["params"] == figures["compressed"]["params"]
    applied = cli("apply", "nets.py:build", "out/plan.yaml", "data.pt", "--engines", "none", "-o", "again")
    assert applied.exit_code == 0, applied.output
