"""The hook engine: networks run from the start and stop at the site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.factorisation_nets import Chain
from support.nets import Residual, batches_of, make, plan_of, unchanged
from torch import Tensor, nn

import rankwise as rw


def test_nothing_runs_beyond_the_site() -> None:
    model, batches = make(Chain), batches_of(16, 20)
    plan = plan_of(rw.find(model, batches[0]), {"net.0": ("svd", (4,)), "net.2": ("svd", (4,))})
    seen: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda module, args, output, name=name: seen.append(name) if len(args[0]) == 16 else None
        )
    rw.factorise(model, plan, data=batches, engine="hooks")
    assert seen.count("net.1") > 1
    # Once, where the calls of a whole batch are counted; the engine's own hook on the site comes first.
    assert {name: seen.count(name) for name in ("net.2", "net.4", "net.6", "")} == dict.fromkeys(
        ("net.2", "net.4", "net.6", ""), 1
    )


def test_hooks_are_gone_afterwards() -> None:
    model, batches = make(Residual), batches_of(8, 3, 8, 8)
    plan = rw.choose(model, rw.collect(model, batches), keep={"macs": 0.6})
    calls: list[int] = []
    handle = model.block1.conv1.register_forward_hook(lambda *_: calls.append(1))
    with unchanged(model):
        small = rw.factorise(model, plan, data=batches, engine="hooks")
    assert calls
    for name, module in small.named_modules():
        assert len(module._forward_hooks) == (name == "block1.conv1"), name
        assert not module._forward_pre_hooks, name
    handle.remove()
    assert not model.block1.conv1._forward_hooks


def test_a_site_that_a_batch_never_reaches() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(self.second(h) if x.sum() > 0 else h)

    model = make(Sometimes)
    batches: list[Any] = [torch.ones(8, 8) + torch.randn(8, 8) / 10, -torch.ones(8, 8)]
    plan = plan_of(rw.find(model, batches[0]), {"second": ("svd", (2,))})
    with unchanged(model):
        small = rw.factorise(model, plan, data=batches)
    assert isinstance(small.second, rw.LowRank)  # fitted to the batch that reaches it


def test_errors_of_the_network_name_the_batch() -> None:
    model, batches = make(Chain), batches_of(16, 20)
    plan = plan_of(rw.find(model, batches[0]), {"net.2": ("svd", (4,))})
    with unchanged(model), pytest.raises(ValueError, match=r"Chain rejects batch 4 \(4, 19\)"):
        rw.factorise(model, plan, data=[*batches, torch.zeros(4, 19)], engine="hooks")
