"""What `from_pretrained` could not give back is refused, and a dense network saves as before."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support.nets import batches_of
from torch import Tensor, nn

import rankwise as rw
from rankwise.training import expand_, merge_


class Pretrained(nn.Module):
    """Saves like a model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))

    def save_pretrained(self, folder: Path) -> str:
        return "saved"

    def push_to_hub(self, name: str) -> str:
        return "pushed"


def test_a_factorised_network_refuses_to_save_so(tmp_path: Path) -> None:
    model, data = Pretrained().eval(), batches_of(32, 16)
    small, _ = rw.compress(model, data, keep={"macs": 0.8})
    rw.save(small, tmp_path / "out")
    for network in (small, copy.deepcopy(small), rw.load(Pretrained(), tmp_path / "out")):
        for method in ("save_pretrained", "push_to_hub"):
            with pytest.raises(ValueError, match=rf"{method} of a factorised Pretrained .* rankwise\.save"):
                getattr(network, method)(tmp_path)
    assert model.save_pretrained(tmp_path) == "saved"


def test_a_merged_network_saves_again(tmp_path: Path) -> None:
    model = Pretrained()
    expand_(model, rw.find(model, torch.randn(1, 16)))
    with pytest.raises(ValueError, match="save_pretrained"):
        model.save_pretrained(tmp_path)
    assert merge_(model).save_pretrained(tmp_path) == "saved"
