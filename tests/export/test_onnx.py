"""ONNX files agree with the network, or do not appear."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from rankwise import export
from rankwise.export.check import program
from rankwise.export.compare import check
from rankwise.formats import FORMATS
from rankwise.network.replacing import replace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.grouped(self.norm(self.conv(x)).relu()).mean((2, 3))))


def run(path: Path, **inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(each) for each in session.run(None, {name: x.numpy() for name, x in inputs.items()})]


@pytest.mark.parametrize("conv, grouped", [("svd", "svd"), ("spatial_svd", "spatial_svd"), ("tucker2", "tucker2")])
def test_a_compressed_network(conv: str, grouped: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = Net().train()
    for name, format in (("conv", conv), ("grouped", grouped), ("head", "svd")):
        ranks = (4, 2) if format == "tucker2" else (3,)
        replace(model, [name], FORMATS[format].build(model.get_submodule(name), ranks, True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = export.onnx(model, torch.randn(1, 3, 8, 8), tmp_path / "sub" / "small.onnx")
    assert [each.name for each in path.parent.iterdir()] == ["small.onnx"]
    assert model.training
    assert model.conv[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    model.eval()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        (y,) = run(path, x=x)
        expected = model(x).detach()
        assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_fixed_batch_size(tmp_path: Path) -> None:
    path = export.onnx(Net(), torch.randn(1, 3, 8, 8), tmp_path / "net.onnx", dynamic_batch=False)
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [1, 3, 8, 8]


def test_the_operator_set(tmp_path: Path) -> None:
    path = export.onnx(Net(), torch.randn(1, 3, 8, 8), tmp_path / "net.onnx", opset=20)
    assert onnx.load(path).opset_import[0].version == 20


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
        torch.tensor([[1, 2, 3]]),
        (torch.tensor([[1, 2, 3]]), torch.ones(1, 3)),
        {"mask": torch.tensor([[1.0, 0.0, 1.0]]), "ids": torch.tensor([[1, 2, 3]]), "scale": 2.0},
    ],
)
def test_kinds_of_inputs(example: Any, tmp_path: Path) -> None:
    path = export.onnx(Words(), example, tmp_path / "words.onnx")
    names = [each.name for each in onnx.load(path).graph.input]
    assert set(names) == ({"ids"} if isinstance(example, Tensor) else {"ids", "mask"})


def test_half_precision(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).half()
    export.onnx(model, torch.randn(2, 8), tmp_path / "half.onnx", tolerance=1e-2)
    with pytest.raises(ValueError, match=r"onnxruntime runs no bfloat16 on the CPU.*export model\.float\(\)"):
        export.onnx(model.bfloat16(), torch.randn(2, 8), tmp_path / "bfloat16.onnx")


def test_weights_beyond_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the name rankwise.export.onnx is the function by now
    monkeypatch.setattr(sys.modules["rankwise.export.to_onnx"], "LARGEST_FILE", 1000)
    path = export.onnx(Net(), torch.randn(1, 3, 8, 8), tmp_path / "net.onnx")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert run(path, x=torch.randn(3, 3, 8, 8))[0].shape == (3, 5)


def test_a_constant_that_looks_like_a_batch(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return x * scale.sum(0)

    path = export.onnx(Scaled(), (torch.randn(1, 4), torch.randn(2, 4)), tmp_path / "scaled.onnx")
    x, scale = (each.type.tensor_type.shape.dim[0].dim_param for each in onnx.load(path).graph.input)
    assert x != scale  # a length of its own


def test_a_full_disk_is_not_the_networks_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export.onnx(Net(), torch.randn(1, 3, 8, 8), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


# --- what is refused; nothing is left behind


class Eigen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x).real


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Wrong(nn.Module):
    """Its batch size is frozen into the graph, and the model itself fails at another one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1) @ torch.ones(9, 4)


@pytest.mark.parametrize(
    "model, shape, message",
    [
        (nn.Sequential(nn.ReLU(), Eigen()), (2, 3, 3), r"aten\.linalg_eig.* in layer '1' \(.*Eigen\)"),
        (nn.Sequential(Branch()), (2, 3), "torch.export cannot capture Sequential: .*control flow"),
        (Wrong(), (2, 3, 3), r"treats the batch size .* as the constant 2; export with dynamic_batch=False"),
        (Net(), (2, 4, 8, 8), "Net rejects the example batch"),
    ],
)
def test_networks_that_cannot_be_exported(
    model: nn.Module, shape: tuple[int, ...], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.onnx").write_text("the file of before")
    with pytest.raises(ValueError, match=message):
        export.onnx(model, torch.randn(shape), tmp_path / "net.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "the file of before"
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_outputs_that_disagree(tmp_path: Path) -> None:
    model, x = Net().eval(), torch.randn(2, 3, 8, 8)
    path = export.onnx(model, x, tmp_path / "net.onnx")
    check(program(path), model, ((x,), {}), 1e-4, "batch size 2")
    model.head.weight.data[0] *= 1.5
    with pytest.raises(ValueError, match=r"at batch size 2 output 0 of the exported file is off by .* is 0\.0001"):
        check(program(path), model, ((x,), {}), 1e-4, "batch size 2")


def test_infinite_outputs_agree_with_themselves(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(x > 0, float("-inf"))

    export.onnx(Masked(), torch.randn(2, 30), tmp_path / "masked.onnx")


def test_a_file_that_is_too_inexact_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="relative to torch"):
        export.onnx(Net(), torch.randn(2, 3, 8, 8), tmp_path / "net.onnx", tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_set_that_is_too_old(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="opset"):
        export.onnx(Net(), torch.randn(2, 3, 8, 8), tmp_path / "net.onnx", opset=3)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a directory; name a file"):
        export.onnx(Net(), torch.randn(2, 3, 8, 8), tmp_path)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'rankwise\[onnx\]'"):
        export.onnx(Net(), torch.randn(2, 3, 8, 8), tmp_path / "net.onnx")


class Chosen(nn.Module):
    """Some entries of one dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", torch.tensor([4, 0, 3], dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.dim, self.index)


@pytest.mark.parametrize(
    ("shape", "dim", "operator"),
    [((2, 5), 1, "GatherElements"), ((2, 3, 5), -1, "GatherElements"), ((2, 5, 3), 1, "Gather")],
)
def test_entries_of_the_last_dimension_are_not_gathered_one_by_one(
    shape: tuple[int, ...], dim: int, operator: str, tmp_path: Path
) -> None:
    file = export.onnx(Chosen(dim), torch.randn(shape), tmp_path / "x.onnx")
    assert operator in [node.op_type for node in onnx.load(file).graph.node]
    x = torch.randn(7, *shape[1:])
    (got,) = onnxruntime.InferenceSession(file).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), Chosen(dim)(x), rtol=0, atol=0)
