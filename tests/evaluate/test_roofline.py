"""The roofline: counts and bytes by hand, and the arithmetic on them; never the seconds themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.evaluate import LayerRoofline, Limits, roofline

LIMITS = Limits(macs_per_second=1e9, bytes_per_second=1e8)


def test_counts_and_bytes_of_every_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 4, bias=False))
    drawn = roofline(model, torch.randn(2, 3, 5, 5), rounds=2, limits=LIMITS)
    convolution, linear = drawn.layers
    assert (convolution.name, convolution.kind, linear.name, linear.kind) == ("0", "conv2d", "3", "linear")
    assert convolution.macs == 2 * 25 * 8 * 27
    assert convolution.bytes == 4 * (2 * 3 * 25 + 2 * 8 * 25 + 8 * 27 + 8)
    assert linear.macs == 2 * 200 * 4
    assert linear.bytes == 4 * (2 * 200 + 2 * 4 + 200 * 4)
    assert drawn.limits == LIMITS
    assert not drawn.not_timed
    assert all(layer.limit_seconds == LIMITS.seconds(layer.macs, layer.bytes) for layer in drawn.layers)
    assert sum(layer.seconds for layer in drawn.layers) > 0


def test_what_is_derived() -> None:
    layer = LayerRoofline(name="a", kind="linear", macs=100, bytes=50, seconds=4.0, limit_seconds=1.0)
    assert (layer.intensity, layer.macs_per_second, layer.share) == (2.0, 25.0, 0.25)


def test_layers_of_a_chain_each_have_a_row() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    sites = rw.find(model, torch.zeros(1, 32))
    small = rw.factorise(model, rw.choose(model, sites, keep={"params": 0.5}, metric="weight"), sites)
    names = [layer.name for layer in roofline(small, torch.randn(1, 32), rounds=1, limits=LIMITS).layers]
    assert names[:2] == ["0.0", "0.1"]


class Twice(nn.Module):
    """Calls one layer twice, in each forward; keeps count of its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.forwards = 0

    def forward(self, x: Tensor) -> Any:
        self.forwards += 1
        return self.layer(self.layer(x))


def test_calls_add_up_and_nothing_is_left_behind() -> None:
    model = Twice().train()
    before = torch.get_num_threads()
    (layer,) = roofline(model, torch.randn(3, 6), rounds=4, warmup=2, limits=LIMITS).layers
    assert layer.macs == 2 * 3 * 36
    assert layer.bytes == 2 * 4 * (18 + 18 + 36 + 6)
    assert model.forwards == 1 + 2 + 4  # its arguments learned, warmed up, measured; counting leaves no trace
    assert model.training
    assert torch.get_num_threads() == before
    assert not model.layer._forward_hooks
    assert not model.layer._forward_pre_hooks


def test_weights_that_others_use_directly_have_no_time_of_their_own() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    drawn = roofline(model, torch.randn(1, 3, 8), rounds=1, limits=LIMITS)
    assert "self_attn.out_proj" in drawn.not_timed
    assert "linear1" in [layer.name for layer in drawn.layers] + list(drawn.not_timed)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"rounds": 0}, "rounds is 0; it must be at least 1"),
        ({"warmup": -1}, "warmup is -1; it must be at least 0"),
    ],
)
def test_options_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roofline(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2), **options)


def test_a_network_without_layers() -> None:
    with pytest.raises(ValueError, match="calls no linear or convolutional layer"):
        roofline(nn.Sequential(nn.ReLU()), torch.zeros(1, 2), limits=LIMITS)
