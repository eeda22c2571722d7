"""Artifacts that earlier versions wrote still load, to the same outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rankwise.artifact import load, read

STORED = Path(__file__).parent / "version2"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc, self.head = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))))
        return y


@pytest.mark.parametrize(
    "name, expected",
    [
        ("plain", [-0.294160, 0.097218, 0.066440, -0.384379]),
        ("coded", [-0.294205, 0.097288, 0.066696, -0.384291]),  # int8+entropy
    ],
)
def test_version_2(name: str, expected: list[float]) -> None:
    assert '"format_version": 2' in (STORED / name / "rankwise.json").read_text()
    model = load(Net().eval(), STORED / name)
    assert model(torch.ones(1, 3, 6, 6))[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert read(STORED / name).structure[0].format == "spatial_svd"
