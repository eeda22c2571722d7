"""Weights that come from a disk, one layer at a time, in the place of a network in memory."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import rankwise as rw
from rankwise.formats import get_format
from rankwise.formats.weights import site_bias, site_weight, weight_metrics


class Shards:
    """The layers of a network on the meta device, each filled from a file when it is asked for."""

    def __init__(self, skeleton: nn.Module, path: Path) -> None:
        self.skeleton, self.path = skeleton, path
        self.asked: list[str] = []

    def get_submodule(self, target: str) -> nn.Module:
        self.asked.append(target)
        layer = copy.deepcopy(self.skeleton.get_submodule(target))
        with safe_open(self.path, "pt") as file:
            values = {name: file.get_tensor(f"{target}.{name}") for name, _ in layer.named_parameters()}
        layer.load_state_dict(values, assign=True)
        return layer


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 12), nn.Linear(12, 4))


@pytest.fixture
def shards(tmp_path: Path) -> tuple[nn.Module, Shards]:
    torch.manual_seed(0)
    model = network()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        skeleton = network()
    return model, Shards(skeleton, tmp_path / "model.safetensors")


def test_weights_and_biases_are_those_of_the_network(shards: tuple[nn.Module, Shards]) -> None:
    model, source = shards
    sites = rw.find(model, torch.zeros(1, 3, 5, 5))
    for name, site in sites.items():
        assert torch.equal(site_weight(source, site), site_weight(model, site))
        bias, wanted = site_bias(source, site), site_bias(model, site)
        assert bias is not None
        assert torch.equal(bias, wanted)
        assert set(source.asked) == {name}  # no other layer was read
        source.asked.clear()


def test_a_site_is_fitted_without_the_network(shards: tuple[nn.Module, Shards]) -> None:
    model, source = shards
    site = rw.find(model, torch.zeros(1, 3, 5, 5))["3"]
    factors = get_format("svd").fit(site, site_weight(source, site), weight_metrics(site), (4,))
    wanted = get_format("svd").fit(site, site_weight(model, site), weight_metrics(site), (4,))
    assert torch.equal(factors.weight, wanted.weight)
