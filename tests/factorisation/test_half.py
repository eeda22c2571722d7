"""Half precision between the factors of a chain: what overflows there is scaled, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from support.nets import plan_of
from torch import Tensor, nn

import rankwise as rw
from rankwise.factorisation.half import LARGEST

U_SIGNS = torch.sign(torch.randn(64, 4, generator=torch.Generator().manual_seed(0))) / 8
V_SIGNS = torch.sign(torch.randn(4, 1024, generator=torch.Generator().manual_seed(1))) / 32


def overflowing(scale: float = 0.01) -> nn.Module:
    """A layer whose inner values would be 1e6 where its outputs are 1e3."""
    model = nn.Sequential(nn.Linear(1024, 64, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(scale * (U_SIGNS @ V_SIGNS))
    return model.half()


def large(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.sign(V_SIGNS[torch.randint(0, 4, (64,), generator=generator)]) * 3e4).half() for _ in range(count)]


@pytest.mark.parametrize("method", ["one-shot", "sequential"])
@pytest.mark.parametrize("scale", [0.01, 0.001])
def test_what_overflows_between_factors_is_scaled(method: str, scale: float) -> None:
    model, data = overflowing(scale), large()
    small, _ = rw.compress(model, data, keep={"params": 0.5}, method=method)
    inner = small[0][0](data[0])
    assert inner.abs().max() < 4 * LARGEST
    error = (small(data[0]).float() - model(data[0]).float()).norm() / model(data[0]).float().norm()
    assert error < 0.01


@pytest.mark.parametrize("format, ranks", [("spatial_svd", (6,)), ("tucker2", (5, 4)), ("cp", (6,)), ("svd", (6,))])
def test_convolutions_of_every_form(format: str, ranks: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1)).eval()
    with torch.no_grad():
        model[0].weight.mul_(2e-3)
    data = [3e4 * torch.sign(torch.randn(8, 16, 6, 6)) for _ in range(2)]
    half = copy.deepcopy(model).half()
    stats = rw.collect(half, [x.half() for x in data])
    plan = plan_of(stats.sites, {"0": (format, ranks)})
    small = rw.factorise(half, plan, stats)
    rounded = copy.deepcopy(half).float()
    wide = rw.factorise(rounded, plan, rw.collect(rounded, data))
    y, wanted = small(data[0].half()).float(), wide(data[0])
    assert torch.isfinite(y).all()
    assert (y - wanted).norm() < 0.01 * wanted.norm()


def test_tiny_values_do_not_vanish() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32)).eval()
    data = [1e-6 * torch.randn(64, 32) for _ in range(2)]
    with torch.no_grad():
        model[0].weight.mul_(1e3)
    half, tiny = copy.deepcopy(model).half(), [x.half() for x in data]
    small, _ = rw.compress(half, tiny, keep={"params": 0.8}, method="one-shot")
    wide, _ = rw.compress(model, [x.float() for x in tiny], keep={"params": 0.8}, method="one-shot")
    wanted = wide(tiny[0].float())
    assert (small(tiny[0]).float() - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide_types_are_filled_as_they_are(dtype: torch.dtype) -> None:
    """bfloat16 has the range of float32."""
    model, data = overflowing().to(dtype), [x.to(dtype) for x in large()]
    small, _ = rw.compress(model, data, keep={"params": 0.5}, method="one-shot")
    assert small[0][0](data[0]).abs().max() > 8 * LARGEST
