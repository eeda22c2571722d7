"""Networks that an artifact does not fit, and models that cannot be stored."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.artifact_nets import Net, Tied, compressed
from torch import nn

from rankwise.artifact import load, save


def other_net(**changes: nn.Module) -> Net:
    net = Net()
    for name, module in changes.items():
        setattr(net, name, module)
    return net


@pytest.mark.parametrize(
    "fresh, message",
    [
        (other_net(extra=nn.Linear(2, 2)), r"the artifact lacks extra.bias \(\[2\]\), extra.weight \(\[2, 2\]\)"),
        (other_net(norm=nn.Identity()), r"the fresh model lacks norm.bias \(\[8\]\), .* and 1 more"),
        (other_net(norm=nn.BatchNorm2d(16)), r"these differ norm.bias \(\[8\] stored, \[16\] fresh\)"),
        (other_net(conv=nn.Conv2d(3, 8, 5)), r"conv \(conv2d \[8, 3, 3, 3\] stored, conv2d \[8, 3, 5, 5\] fresh\)"),
        (other_net(conv=nn.ReLU()), r"conv \(conv2d \[8, 3, 3, 3\] stored, ReLU fresh\)"),
        (other_net(conv=nn.ConvTranspose2d(8, 3, 3)), r"stored, conv_transpose2d \[3, 8, 3, 3\] fresh\)"),
        (nn.Linear(2, 2), r"another network than this Linear: the fresh model lacks"),
    ],
)
def test_another_network(fresh: nn.Module, message: str, artifact: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(fresh, artifact)


def test_an_already_compressed_model_is_not_fresh(small: nn.Module, artifact: Path) -> None:
    with pytest.raises(ValueError, match=r"conv \(conv2d \[8, 3, 3, 3\] stored, LowRankLayer fresh\)"):
        load(small, artifact)


def test_a_fresh_model_must_not_share_what_the_artifact_separates(tmp_path: Path) -> None:
    separate = Tied()
    separate.again = copy.deepcopy(separate.block)
    save(compressed(separate, {"block.0": ("svd", (3,)), "again.0": ("svd", (3,))}), tmp_path / "chains")
    with pytest.raises(ValueError, match=r"shares 'again\.0' with 'block\.0'"):
        load(Tied(), tmp_path / "chains")
    save(separate, tmp_path / "dense")
    with pytest.raises(ValueError, match=r"shares 'again\.0\.weight' with 'block\.0\.weight'"):
        load(Tied(), tmp_path / "dense")


def test_a_fresh_model_without_values(artifact: Path) -> None:
    with torch.device("meta"):
        fresh = Net()
    with pytest.raises(ValueError, match="on the meta device"):
        load(fresh, artifact)


def test_models_that_cannot_be_stored(small: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wrap it first: model = nn\.Sequential\(model\)"):
        save(small.conv, tmp_path / "out")
    nn.utils.parametrizations.weight_norm(small.conv[1])
    with pytest.raises(ValueError, match=r"site 'conv': .* remove parametrisations"):
        save(small, tmp_path / "out")

    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    with pytest.raises(ValueError, match=r"state '0\._extra_state' is a dict"):
        save(nn.Sequential(Extra(2, 2)), tmp_path / "out")
    with pytest.raises(ValueError, match="lazy layers"):
        save(nn.Sequential(nn.LazyLinear(2)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("figures", [{"top1": float("nan")}, {"model": nn.ReLU()}, {"x": torch.ones(1)}])
def test_figures_that_json_cannot_hold(figures: dict[str, Any], small: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="figures and plan must be"):
        save(small, tmp_path / "out", figures=figures)
    assert list(tmp_path.iterdir()) == []
