"""Folded batch norms: the same outputs, fewer layers, and what cannot be folded stays."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import rankwise as rw
from rankwise.formats import FORMATS
from rankwise.network.replacing import replace
from rankwise.surgery.folding import Folded, folded


def trained(model: nn.Module) -> nn.Module:
    """Running statistics and affine parameters as training leaves them: none of them trivial."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    torch.nn.init.uniform_(tensor, 0.3, 2.0)
    return model.eval()


def same(a: nn.Module, b: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(a(x), b(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer, norm, shape",
    [
        (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), (3, 4)),
        (nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (3, 4, 7)),
        (nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6, affine=False), (3, 4, 7, 7)),
        (nn.Conv3d(2, 6, 2), nn.BatchNorm3d(6), (2, 2, 4, 4, 4)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(6), (3, 4, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (3, 4, 5)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kind(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model = trained(nn.Sequential(layer, norm, nn.ReLU())).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = folded(model)
    assert isinstance(small[1], Folded)
    assert small[1].into == "0"
    same(small, model, torch.randn(shape, dtype=dtype))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("format", ["svd", "spatial_svd", "tucker2"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_last_layer_of_a_chain(format: str, bias: bool) -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3, bias=bias), nn.BatchNorm2d(6)))
    chain = FORMATS[format].build(model[0], (3, 3) if format == "tucker2" else (3,), bias)
    replace(model, ["0"], chain)
    small = folded(model)
    assert isinstance(small[1], Folded)
    same(small, model, torch.randn(2, 4, 6, 6))


class Odd(nn.Module):
    """Every reason why a norm stays."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 1)
        self.norm_of_twice = nn.BatchNorm2d(4)
        self.read_elsewhere = nn.Conv2d(4, 4, 1)
        self.norm_of_read = nn.BatchNorm2d(4)
        self.batch = nn.Conv2d(4, 4, 1)
        self.norm_of_batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.one, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.other.weight = self.one.weight
        self.norm_of_one = nn.BatchNorm2d(4)
        self.first = nn.BatchNorm2d(4)
        self.a, self.shared_norm, self.b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.good, self.norm_of_good = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norm_of_twice(self.twice(x)) + self.twice(x)
        y = self.read_elsewhere(x)
        x = self.norm_of_read(y) + y
        x = self.norm_of_batch(self.batch(x))
        x = self.other(self.norm_of_one(self.one(x)))
        x = self.shared_norm(self.b(self.shared_norm(self.a(x))))
        return self.norm_of_good(self.good(x))


def test_what_stays(caplog: pytest.LogCaptureFixture) -> None:
    model = trained(Odd())
    with caplog.at_level(logging.INFO, "rankwise"):
        small = folded(model)
    assert [name for name, module in small.named_modules() if isinstance(module, Folded)] == ["norm_of_good"]
    assert "batch norms that cannot be folded stay: norm_of_twice, norm_of_read, " in caplog.text
    assert "and 2 more" in caplog.text
    same(small, model, torch.randn(2, 4, 3, 3))


class Read(nn.Module):
    """A layer whose weight, or whose output where it is not trained, is used elsewhere."""

    def __init__(self, weight: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.weight = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.weight:
            return self.norm(y) + nn.functional.conv2d(x, self.conv.weight)
        return self.norm(y) if self.training else self.norm(y) + y


def pruned() -> nn.Module:
    layer = nn.Conv2d(4, 4, 1)
    with torch.no_grad():  # pruning makes a weight that could not be copied otherwise
        prune.random_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize(
    "model",
    [
        Read(weight=True),
        Read(weight=False),
        nn.Sequential(pruned(), nn.BatchNorm2d(4)),
        nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)),
        # the last dimension is the layer's, the second the norm's
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm2d(4)),
    ],
    ids=["weight read", "output read in eval mode", "pruned", "parametrised", "other dimension"],
)
def test_what_would_be_wrong_stays(model: nn.Module) -> None:
    model = trained(model).train()
    small = folded(model)
    assert model.training
    assert small.training
    assert not any(isinstance(module, Folded) for module in small.modules())
    same(small.eval(), model.eval(), torch.randn(2, 4, 4, 4))


def test_channels_that_are_no_outputs_are_refused() -> None:
    model = trained(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()))
    small = folded(model)
    same(small, model, torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"folded into '0' works on 2 dimensions, and got \[3, 4, 4\]"):
        small(torch.randn(3, 4, 4))
    assert torch.fx.symbolic_trace(small)(torch.ones(3, 4)).shape == (3, 4)
    exported = torch.export.export(small, (torch.ones(3, 4),))
    torch.testing.assert_close(exported.module()(torch.ones(3, 4)), small(torch.ones(3, 4)))


def test_layers_that_cannot_be_copied_are_named() -> None:
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"'0' carries the old torch\.nn\.utils\.weight_norm"):
        folded(nn.Sequential(layer, nn.BatchNorm1d(4)))


def test_a_network_that_cannot_be_traced() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"Branch cannot be traced .*; use it with its batch norms"):
        folded(Branch())


def build() -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )


def test_a_folded_network_is_an_ordinary_one(tmp_path: Path) -> None:
    model = folded(trained(build()))
    plan = rw.choose(model, rw.find(model, torch.randn(1, 3, 8, 8)), keep={"macs": 0.6}, metric="weight")
    small = rw.factorise(model, plan, rw.find(model, torch.randn(1, 3, 8, 8)))
    rw.save(small, tmp_path / "out")
    x = torch.randn(2, 3, 8, 8)
    for fresh in (build().eval(), folded(build().eval())):
        loaded = rw.load(fresh, tmp_path / "out")
        with torch.no_grad():
            assert torch.equal(loaded(x), small(x))
    assert not any(isinstance(module, Folded) for module in build().modules())
    other = build()
    other[1] = nn.Identity()
    with pytest.raises(ValueError, match="batch norm '1' was folded into '0', the fresh model has no such pair"):
        rw.load(other, tmp_path / "out")
