"""The command line on a trained network: the figures are those that the network is known for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch


@pytest.mark.slow
def test_resnet20_keeps_its_accuracy_with_sixty_percent_of_its_macs(
    networks: ModuleType, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text("import networks\n\ndef build():\n    return networks.CifarResNet(3)\n")
    torch.save({"state_dict": networks.resnet20().state_dict()}, "resnet20.pt")
    for split in ("train", "test"):
        images, labels = networks.cifar10_lossless(split)
        np.savez(f"{split}.npz", images=images.numpy(), labels=labels.numpy())
    result = cli(
        "compress", "nets.py:build", "train.npz", "--weights", "resnet20.pt", "--normalise", "imagenet",
        "--test", "test.npz", "--keep", "macs=0.6", "--samples", "256", "--engines", "none", "-o", "out", "--json", "-",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["figures"]
    assert figures["dense"] | {"bytes": 0} == {
        "params": 269_722,
        "macs": 40_551_040,
        "bytes": 0,
        "top1": 91.5,
        "top5": 99.8,
    }
    assert figures["compressed"]["macs"] <= 0.6 * 40_551_040
    # Four standard errors of an accuracy of 1000 images would be 3.5 points.
    assert figures["compressed"]["top1"] > 89
    assert figures["compressed"]["agreement"] > 93
