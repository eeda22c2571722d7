"""Modules that ask for the version of their values, as torchvision's MNASNet does, get it on every way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import rankwise as rw
from rankwise.inputs.checkpoints import load_weights


class Versioned(nn.Module):
    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(24, 24), nn.BatchNorm1d(24), nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version") not in (1, 2):
            raise ValueError(f"version should be 1 or 2 instead of {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(Versioned(), nn.ReLU(), nn.Linear(6, 6)).eval()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 24, generator=generator) for _ in range(4)]


def test_the_network_refuses_values_without_a_version() -> None:
    with pytest.raises(ValueError, match="version should be 1 or 2 instead of None"):
        network().load_state_dict(dict(network().state_dict()))


@pytest.mark.parametrize("storage", ["plain", "entropy"])
def test_an_artifact_is_loaded(storage: str, tmp_path: Path) -> None:
    small, _ = rw.compress(network(), batches(), keep={"params": 0.6})
    rw.save(small, tmp_path / "out", storage=storage)
    loaded = rw.load(network(seed=3), tmp_path / "out", example=batches()[0])
    assert torch.equal(loaded(batches()[0]), small(batches()[0]))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_are_loaded(suffix: str, tmp_path: Path) -> None:
    path, fresh = tmp_path / f"net.{suffix}", network(seed=3)
    state = network().state_dict()
    torch.save(state, path) if suffix == "pth" else save_file(state, path)
    load_weights(fresh, path, "nets.py:build")
    assert torch.equal(fresh(batches()[0]), network()(batches()[0]))


def test_it_is_healed_and_resumed(tmp_path: Path) -> None:
    dense, file = network(), tmp_path / "heal.pt"
    small, _ = rw.compress(dense, batches(), keep={"params": 0.4})
    healed, report = rw.heal(small, dense, batches(), epochs=2, checkpoint=file)
    assert report.after <= report.before
    again, _ = rw.heal(small, dense, batches(), epochs=2, checkpoint=file, resume=True)
    assert torch.equal(again(batches()[0]), healed(batches()[0]))


def test_a_stopped_compression_goes_on(tmp_path: Path) -> None:
    small, _ = rw.compress(network(), batches(), keep={"params": 0.6}, checkpoint=tmp_path / "work")
    again, _ = rw.compress(network(), batches(), keep={"params": 0.6}, checkpoint=tmp_path / "work", resume=True)
    assert torch.equal(again(batches()[0]), small(batches()[0]))
