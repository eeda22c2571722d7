"""ExecuTorch files agree with the network, or do not appear."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise import export
from rankwise.export.check_executorch import program
from rankwise.formats import FORMATS
from rankwise.network.replacing import replace

pytest.importorskip("executorch", reason="the extra [executorch] is not installed")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3), keepdim=True).flatten(1))


def test_a_compressed_network(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = Net().train()
    for name, format, ranks in (("conv", "tucker2", (4, 2)), ("head", "svd", (3,))):
        replace(model, [name], FORMATS[format].build(model.get_submodule(name), ranks, True))
    with caplog.at_level(logging.INFO, "rankwise"):
        path = export.executorch(model, torch.randn(2, 3, 8, 8), tmp_path / "sub" / "small.pte")
    assert [each.name for each in path.parent.iterdir()] == ["small.pte"]
    assert model.training
    assert capfd.readouterr().out == ""
    assert "and nothing is left for portable kernels" in caplog.text
    model.eval()
    x = torch.randn(2, 3, 8, 8)
    (y,) = program(path, threads=1)([x])
    expected = model(x).detach()
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()
    with pytest.raises(ValueError, match=r"fails on inputs of shapes \[\[3, 3, 8, 8\]\].* that it was exported with"):
        program(path)([torch.randn(3, 3, 8, 8)])


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


def test_portable_kernels_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rankwise"):
        export.executorch(nn.Sequential(nn.Linear(4, 3), Summed()), torch.randn(2, 4), tmp_path / "summed.pte")
    assert "portable kernels, which are slower, run aten::cumsum in layer '1' (" in caplog.text


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> dict[str, Any]:
        hidden = self.embed(ids) * scale
        hidden = hidden if mask is None else hidden * mask[..., None]
        return {"hidden": hidden, "more": (self.head(hidden), None)}


@pytest.mark.parametrize(
    "example",
    [
        (torch.tensor([[1, 2, 3]]), torch.ones(1, 3)),
        {"mask": torch.tensor([[1.0, 0.0, 1.0]]), "ids": torch.tensor([[1, 2, 3]])},
    ],
)
def test_kinds_of_inputs(example: Any, tmp_path: Path) -> None:
    assert export.executorch(Words(), example, tmp_path / "words.pte").is_file()


class Eigen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x).real


@pytest.mark.parametrize(
    "model, message",
    [
        (nn.Sequential(nn.ReLU(), Eigen()), r"ExecuTorch cannot run aten\.linalg_eig in layer '1' \(.*Eigen\): "),
        (nn.Linear(4, 2), "Linear rejects the example batch"),
    ],
)
def test_networks_that_cannot_be_exported(
    model: nn.Module, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.pte").write_text("the file of before")
    with pytest.raises(ValueError, match=message):
        export.executorch(model, torch.randn(2, 3, 3), tmp_path / "net.pte")
    assert [each.name for each in tmp_path.iterdir()] == ["net.pte"]
    assert (tmp_path / "net.pte").read_text() == "the file of before"
    assert capfd.readouterr().out == ""


def test_outputs_that_disagree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output 0 of the exported file is off by .* tolerance is 1e-12"):
        export.executorch(nn.Linear(64, 64), torch.randn(2, 64), tmp_path / "net.pte", tolerance=1e-12)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"is a directory; name a file, such as .*model\.pte"):
        export.executorch(nn.Linear(3, 2), torch.randn(2, 3), tmp_path)


def test_a_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(ImportError, match=r"needs executorch: pip install 'rankwise\[executorch\]'"):
        export.executorch(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "net.pte")


def test_a_file_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "net.pte").write_bytes(b"something else")
    with pytest.raises(ValueError, match="ExecuTorch cannot load"):
        program(tmp_path / "net.pte")


def test_threads_do_not_change_under_a_program(tmp_path: Path) -> None:
    """XNNPACK's pool is one for the process; to replace it under a program in use is a crash."""
    x = torch.randn(2, 4)
    path = export.executorch(nn.Linear(4, 3), x, tmp_path / "net.pte")
    first = program(path, threads=1)
    with pytest.raises(ValueError, match="programs of this process run on 1 threads, so this one cannot have 2"):
        program(path, threads=2)
    assert torch.equal(first([x])[0], program(path, threads=1)([x])[0])
    del first
    assert program(path, threads=2)([x])[0].shape == (2, 3)
