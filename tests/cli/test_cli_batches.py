"""Batches of the user's own: several inputs, pairs with labels, mappings, time first; files that import torchvision."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankwise.inputs.user_batches import from_batches

NETS = """
import torch
from torch import nn


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 6)

    def forward(self, x, edges):
        x = torch.relu(self.first(x))
        return self.second(torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]))


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(20, 24), nn.Linear(24, 24), nn.Linear(24, 20)

    def forward(self, ids, mask=None, labels=None):
        x = self.table(ids)
        return self.head(torch.relu(self.body(x if mask is None else x * mask.unsqueeze(-1))))


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.body = nn.GRU(8, 24), nn.Linear(24, 24)

    def forward(self, x):
        return self.body(self.read(x)[0])


def graphs():
    return [(torch.randn(30, 24), torch.randint(0, 30, (2, 80))) for _ in range(4)]


def texts():
    return [(torch.randint(0, 20, (4, 7)), torch.ones(4, 7)) for _ in range(4)]


def mappings():
    return [{"ids": torch.randint(0, 20, (4, 7)), "labels": torch.randint(0, 20, (4, 7))} for _ in range(4)]


def steps():
    return [torch.randn(7, 3, 8) for _ in range(4)]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(NETS)
    return tmp_path


@pytest.mark.parametrize(
    ("network", "data", "told", "macs"),
    [
        ("Graph", "graphs", "both of each pair read as inputs (--batches pairs", 30 * (24 * 24 + 24 * 6)),
        ("Text", "texts", "both of each pair read as inputs (--batches pairs", 7 * (24 * 24 + 24 * 20)),
        ("Text", "mappings", "'labels' read as labels (--batches inputs", 7 * (24 * 24 + 24 * 20)),
        ("Steps", "steps", "12 samples", 7 * (24 * 24 + 3 * 24 * (8 + 24))),
    ],
)
def test_batches_are_read_as_the_network_takes_them(
    network: str, data: str, told: str, macs: int, folder: Path, cli: Callable[..., Any]
) -> None:
    result = cli("plan", f"own.py:{network}", f"own.py:{data}", "--keep", "params=0.9", "-o", "p.yaml", "--json", "j")
    assert result.exit_code == 0, result.output
    assert told in " ".join((result.stdout + result.stderr).split())
    assert json.loads(Path("j").read_text())["plan"]["dense"]["macs"] == macs


def test_the_whole_batch_as_example(folder: Path, cli: Callable[..., Any]) -> None:
    for option, factor in (((), 1), (("--example-batch",), 4)):
        result = cli("inspect", "own.py:Text", "--data", "own.py:texts", *option, "--json", "j")
        assert result.exit_code == 0, result.output
        assert json.loads(Path("j").read_text())["total_macs"] == factor * 7 * (24 * 24 + 24 * 20)


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_a_file_that_imports_torchvision(folder: Path, cli: Callable[..., Any]) -> None:
    Path("seen.py").write_text(
        "from torch import nn\nfrom torchvision.ops import Conv2dNormActivation\n\n\ndef build():\n"
        "    return nn.Sequential(Conv2dNormActivation(3, 8), nn.Flatten())\n"
    )
    result = cli("inspect", "seen.py:build", "--input-shape", "3,8,8")
    assert result.exit_code == 0, result.output


# ---- what is decided on what evidence


class Takes(nn.Module):
    """Takes one input, and a second one by some name, which may have to be there."""

    def __init__(self, name: str | None, needed: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        second = "" if name is None else f", {name}" if needed else f", {name}=None"
        made: dict[str, Any] = {}
        exec(f"def forward(self, x{second}): return self.layer(x)", made)
        self.forward = made["forward"].__get__(self)  # type: ignore[method-assign]


X, CLASSES, WEIGHTS = torch.zeros(6, 4), torch.zeros(6, dtype=torch.long), torch.ones(6, 4)


@pytest.mark.parametrize(
    ("network", "batch", "labelled"),
    [
        (Takes(None), (X, CLASSES), True),
        (Takes(None), (X, WEIGHTS), True),  # values to learn: the network takes no second input
        (Takes("mask"), (X, WEIGHTS), False),
        (Takes("mask"), (X, CLASSES), True),
        (Takes("labels"), (X, WEIGHTS), True),
        (Takes("edges", needed=True), (X, CLASSES), False),
        (Takes("mask"), (X,), False),
        (Takes(None), X, False),
        (Takes("y"), {"x": X, "y": WEIGHTS}, True),
        (Takes("target", needed=True), {"x": X, "target": WEIGHTS}, False),
    ],
)
def test_labels_are_told_from_inputs(network: nn.Module, batch: Any, labelled: bool) -> None:
    data = from_batches([batch] * 2, "own.py:f", None, "auto", network)
    assert data.labelled == labelled
    assert data.samples == 12


def test_what_the_user_says_counts() -> None:
    network = Takes("mask")
    assert from_batches([(X, CLASSES)], "f", None, "inputs", network).labelled is False
    assert from_batches([(X, WEIGHTS)], "f", None, "pairs", network).labelled is True
    with pytest.raises(ValueError, match="returns no pairs"):
        from_batches([X], "f", None, "pairs", network)
    with pytest.raises(ValueError, match="takes neither the first of each pair nor both"):
        from_batches([(torch.zeros(6, 5), CLASSES)], "f", None, "auto", network)


def test_lists_of_pictures_are_one_input() -> None:
    class Detector(nn.Module):
        def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
            return torch.stack(images).mean((1, 2, 3))

    pictures = [torch.zeros(3, 8, 8) for _ in range(4)]
    data = from_batches([(pictures, [{"boxes": torch.zeros(1, 4)}] * 4)], "f", None, "auto", Detector())
    assert data.labelled
    assert data.samples == 4
    assert next(iter(data.inputs))[0] is pictures
