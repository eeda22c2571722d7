"""A small project folder such as a user has, and a way to run the command line in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rankwise.cli.app import app

NETS = """
import torch
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5),
    )


def wider():
    return nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5))


def not_a_network():
    return 3


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        yield torch.rand(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: `nets.py`, its weights `net.pt`, `data.npz` with labels, `pictures/` with class folders."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    namespace: dict[str, Any] = {}
    exec(NETS, namespace)
    torch.manual_seed(0)
    torch.save(namespace["build"]().state_dict(), "net.pt")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez("data.npz", images=images, labels=random.integers(0, 5, 40))
    for index, name in enumerate(("ape", "bee", "cat", "dog", "eel")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(images[3 * index + number]).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def cli() -> Callable[..., Any]:
    """Run a command line; `.stdout`, `.stderr`, `.exit_code`."""

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
