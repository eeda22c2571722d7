"""Expansion and merging leave the function as it is, for every kind of layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.nets import Residual, batches_of, chains, make, outputs, plan_of, unchanged
from torch import Tensor, nn

import rankwise as rw
from rankwise.formats import of_role
from rankwise.layers.kinds import Role
from rankwise.network.sites import fingerprint
from rankwise.training import deviation, expand_, merge_

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(10, 6), (3, 10)),
    "tall linear": (lambda: nn.Linear(5, 12, bias=False), (3, 5)),
    "sequence": (lambda: nn.Linear(7, 7), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3, 2, 1), (2, 6, 9, 8)),
    "more outputs than inputs": (lambda: nn.Conv2d(2, 24, 3, padding=1, bias=False), (2, 2, 7, 7)),
    "one channel": (lambda: nn.Conv2d(1, 6, 5), (2, 1, 9, 9)),
    "1x1": (lambda: nn.Conv2d(8, 5, 1, 2), (2, 8, 6, 6)),
    "groups": (lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2), (2, 6, 9, 9)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 7)),
    "same": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same"), (2, 4, 7, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 9, 4, 3, 1), (2, 4, 17)),
    "conv3d": (lambda: nn.Conv3d(3, 5, (1, 3, 2), padding=(0, 1, 1)), (2, 3, 4, 5, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2), (2, 6, 5, 5)),
}


def expanded(layer: nn.Module, shape: tuple[int, ...], format: str) -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    model = nn.Sequential(layer)
    x = batches_of(*shape, count=1)[0]
    return model, expand_(copy.deepcopy(model), rw.find(model, x), format), x  # type: ignore[return-value]


@pytest.mark.parametrize("format", ["tucker2", "svd"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_function_stays_and_merging_gives_the_layer_back(name: str, format: str) -> None:
    build, shape = LAYERS[name]
    dense, model, x = expanded(make(build), shape, format)
    layer: Any = dense[0]
    chain: Any = model[0]
    assert chain.format.name == ("tucker2" if format == "tucker2" and layer.weight[0, 0].numel() > 1 else "svd")
    torch.testing.assert_close(model(x), dense(x), atol=1e-5, rtol=1e-5)
    assert deviation(model) < 1e-6
    again: Any = merge_(copy.deepcopy(model))[0]
    assert type(again) is type(layer)
    assert again.extra_repr() == layer.extra_repr()
    torch.testing.assert_close(again.weight, layer.weight, atol=1e-6, rtol=1e-5)
    if layer.bias is not None:
        torch.testing.assert_close(again.bias, layer.bias, atol=0, rtol=0)
    torch.testing.assert_close(nn.Sequential(again)(x), dense(x), atol=1e-5, rtol=1e-5)


def test_tucker2_grows_by_the_squares_of_both_sides() -> None:
    """T^2 + S^2 for a k x k kernel, and no rank is cut."""
    dense, model, _ = expanded(make(lambda: nn.Conv2d(6, 10, 3)), (1, 6, 5, 5), "tucker2")
    assert chains(model)["0"].ranks == (10, 6)
    assert count(model) - count(dense) == 10**2 + 6**2
    dense, model, _ = expanded(make(lambda: nn.Linear(6, 10)), (1, 6), "tucker2")
    assert count(model) - count(dense) == 6**2


def test_the_core_has_the_singular_values_of_the_unfoldings() -> None:
    dense, model, _ = expanded(make(lambda: nn.Conv2d(6, 10, 3)), (1, 6, 5, 5), "tucker2")
    weight, core = dense[0].weight, model[0][1].weight  # type: ignore[index, union-attr]
    for dim in (0, 1):
        of_weight, of_core = (torch.linalg.svdvals(w.transpose(0, dim).flatten(1)) for w in (weight, core))  # type: ignore[operator]
        torch.testing.assert_close(of_core, of_weight, atol=1e-6, rtol=1e-5)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("format", ["tucker2", "svd"])
def test_a_residual_network(format: str) -> None:
    model, data = make(Residual), batches_of(4, 3, 8, 8)
    sites = rw.find(model, data[0])
    with unchanged(model):
        wide = expand_(copy.deepcopy(model), sites, format)
    assert set(chains(wide)) == set(sites)
    torch.testing.assert_close(outputs(wide, data), outputs(model, data), atol=1e-5, rtol=1e-4)
    merged = merge_(wide)
    assert fingerprint(merged) == sites.fingerprint  # so that plans of the one are plans of the other
    torch.testing.assert_close(outputs(merged, data), outputs(model, data), atol=1e-5, rtol=1e-4)


def test_only_what_is_named_and_every_name_of_it() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(6, 3))
    x = torch.randn(4, 6)
    before = model(x)
    expand_(model, rw.find(model, x), only="0")
    assert model[0] is model[2]
    assert isinstance(model[3], nn.Linear)
    torch.testing.assert_close(model(x), before)
    merge_(model)
    assert model[0] is model[2]
    torch.testing.assert_close(model(x), before)


def test_modes_and_flags_stay() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6).requires_grad_(False)).train()
    expand_(model, rw.find(model, torch.randn(1, 6)))
    assert all(parameter.requires_grad for parameter in model[0].parameters())
    assert not any(parameter.requires_grad for parameter in model[1].parameters())
    assert all(part.training for part in model.modules())
    merge_(model)
    assert model[0].weight.requires_grad
    assert not model[1].weight.requires_grad
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("format", list(of_role(Role.LAYER)))
def test_merging_chains_of_every_format(format: str) -> None:
    """Also what `factorise` made: the merged layer is the layer that the chain stands for."""
    torch.manual_seed(0)
    tried = 0
    for layer, shape in (
        (nn.Conv2d(8, 12, 3, stride=(1, 2), padding=(1, 0)), (2, 8, 9, 9)),
        (nn.Conv2d(8, 8, 1), (2, 8, 4, 4)),
        (nn.Linear(16, 12), (2, 16)),
    ):
        model, x = nn.Sequential(layer).eval(), batches_of(*shape, count=1)[0]
        sites = rw.find(model, x)
        form = rw.FORMATS[format]
        if form.refuses(sites["0"]) is not None:
            continue
        ranks = form.limits(sites["0"])
        small = rw.factorise(model, plan_of(sites, {"0": (format, ranks)}, "weight"), sites)
        expected = small(x)
        merged = merge_(small)
        assert type(merged[0]) is type(layer)  # type: ignore[index]
        torch.testing.assert_close(merged(x), expected, atol=1e-4, rtol=1e-4)
        tried += 1
    assert tried


def test_an_embedding() -> None:
    model = nn.Sequential(nn.Embedding(20, 6, padding_idx=2), nn.Linear(6, 4))
    ids = torch.randint(20, (3, 5))
    before, layer = model(ids), model[0]
    sites = rw.find(model, ids)
    expand_(model, sites)
    assert model[0] is layer  # it has to be named
    merge_(model)
    expand_(model, sites, only=["*", "0"])
    assert model[0] is not layer
    torch.testing.assert_close(model(ids), before, atol=1e-5, rtol=1e-5)
    assert deviation(model) < 1e-6
    merge_(model)
    assert model[0].extra_repr() == layer.extra_repr()
    torch.testing.assert_close(model(ids), before, atol=1e-5, rtol=1e-5)


def test_what_it_refuses() -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    sites = rw.find(model, torch.randn(1, 6))
    with pytest.raises(ValueError, match="'cp' is not one of tucker2, svd"):
        expand_(model, sites, "cp")
    with pytest.raises(ValueError, match="matches no site"):
        expand_(model, sites, only="fc*")
    with pytest.raises(ValueError, match="no chain of factors"):
        merge_(model)
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(ValueError, match="depthwise"):
        expand_(depthwise, rw.find(depthwise, torch.randn(1, 4, 5, 5)))
    tied = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    tied[1].weight = tied[0].weight
    ids = torch.randint(9, (2, 3))
    with pytest.raises(ValueError, match="shared by an embedding"):
        expand_(tied, rw.find(tied, ids))
    small = rw.factorise(
        tied, plan_of(found := rw.find(tied, ids), {next(iter(found)): ("svd", (2,))}, "weight"), found
    )
    with pytest.raises(ValueError, match="shares its factors"):
        merge_(small)
