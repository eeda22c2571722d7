"""Architectures of torchvision, end to end: find, collect, choose, factorise both ways, save, load, fine-tune."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.nets import chains, outputs, settled, unchanged
from torch import Tensor, nn

import rankwise as rw
from rankwise.inputs.torchvision_shim import import_torchvision


class Entry(NamedTuple):
    """Input size, how much of what is kept, and how the network is built."""

    size: int
    keep: float = 0.6
    budget: str = "macs"
    build: dict[str, Any] = {}  # noqa: RUF012


# Budgets other than 0.6: some layers must stay dense.
ZOO = {
    "resnet18": Entry(64),
    "resnet50": Entry(64),
    "googlenet": Entry(96, build={"init_weights": False, "aux_logits": True}),
    "vgg16": Entry(32, budget="params"),  # most of it is one layer with 25,088 inputs
    "densenet121": Entry(64),
    "mobilenet_v2": Entry(64),
    "efficientnet_b0": Entry(64),
    "regnet_y_400mf": Entry(64),
    "vit_b_16": Entry(224, keep=0.75),
    "swin_t": Entry(64, keep=0.75),
    "convnext_tiny": Entry(64),
}


# From 15 seconds to two minutes each; the parts of a ResNet are those of ResNet-20 in `test_real_networks` as well.
SLOW = ("resnet18", "vgg16", "vit_b_16", "resnet50", "densenet121", "convnext_tiny", "regnet_y_400mf", "swin_t")


def dense(name: str, seed: int) -> nn.Module:
    """The network with random weights, batch-norm statistics that are not new, every second module in training."""
    torch.manual_seed(seed)
    model = settled(getattr(import_torchvision().models, name)(weights=None, **ZOO[name].build), seed)
    for parameter in model.parameters():
        if parameter.dim() == 2 and not parameter.any():  # the head of a new vision transformer
            nn.init.normal_(parameter, std=0.02)
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0
    return model


def plan_for(name: str, model: nn.Module) -> tuple[list[Tensor], rw.Statistics, rw.Plan]:
    entry = ZOO[name]
    batches = [torch.randn(2, 3, entry.size, entry.size, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    stats = rw.collect(model, batches)
    return batches, stats, rw.choose(model, stats, keep={entry.budget: entry.keep})


@pytest.fixture(autouse=True)
def _free() -> Iterator[None]:
    yield
    gc.collect()


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ZOO])
def test_every_verb(name: str, tmp_path: Path) -> None:
    model = dense(name, seed=0)
    flags = {module_name: module.training for module_name, module in model.named_modules()}
    with unchanged(model):
        batches, stats, plan = plan_for(name, model)
        smalls = {
            "one-shot": rw.factorise(model, plan, stats),
            "sequential": rw.factorise(model, plan, stats, data=batches, engine="graph"),
        }
    assert plan.planned[ZOO[name].budget] <= ZOO[name].keep * plan.dense[ZOO[name].budget]
    x, fresh = batches[0], dense(name, seed=1)
    for method, small in smalls.items():
        names = {row.site for row in plan.factorised}
        assert names
        assert set(chains(small)) == names
        for module_name, flag in flags.items():
            assert small.get_submodule(module_name).training == flag, module_name
        assert_buffers_equal(model, small)
        sites = rw.find(small, x[:1])
        assert (sites.total_params, sites.total_macs) == (plan.planned["params"], plan.planned["macs"])

        y = outputs(small, [x])
        assert y.isfinite().all()
        assert not torch.equal(y, outputs(model, [x]))
        rw.save(small, tmp_path / method, plan=plan)
        loaded = rw.load(fresh, tmp_path / method)
        assert torch.equal(outputs(loaded, [x]), y)
        assert rw.evaluate.size(loaded).params == plan.planned["params"]
        fine_tune(loaded, x)


def assert_buffers_equal(a: nn.Module, b: nn.Module) -> None:
    buffers = dict(b.named_buffers())
    for name, buffer in a.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def fine_tune(model: nn.Module, x: Tensor) -> None:
    """One step of SGD reaches every factor."""
    model.eval()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    y = model(x)
    (y / y.detach().norm()).square().sum().backward()
    optimiser.step()
    assert not torch.equal(outputs(model, [x]), y.detach())
    for chain_name, chain in chains(model).items():
        for name, parameter in chain.named_parameters(prefix=chain_name):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.count_nonzero() > 0, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = dense(name, seed=0)
    batches, stats, plan = plan_for(name, model)
    small = rw.factorise(model, plan, stats)
    path = rw.export.onnx(small, batches[0][:1], tmp_path / "small.onnx")  # compared with onnxruntime there
    assert path.stat().st_size > 0
