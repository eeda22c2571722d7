"""Layers that hang together: what is one site, by object and by memory, and each reason to stay dense."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.nets import batches_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import rankwise as rw
from rankwise.running.state import numbers_in


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(24, 24, bias=False), nn.Linear(24, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def numbers(model: nn.Module) -> int:
    return numbers_in(model.parameters())


@pytest.mark.parametrize("method", ["sequential", "one-shot"])
def test_one_memory_is_one_site(method: str) -> None:
    model = Two().eval()
    model.b.weight = nn.Parameter(model.a.weight.data)
    sites = rw.find(model, torch.randn(2, 24))
    assert sites.total_params == 24 * 24
    assert sites["a"].aliases == ("b",)
    small, report = rw.compress(model, batches_of(32, 24), keep={"params": 0.7}, method=method)
    assert small.a is small.b
    assert numbers(small) == report.compressed.params <= 0.7 * 24 * 24


@pytest.mark.parametrize("view", [lambda w: w.t(), lambda w: w.flip(0).flip(0).set_(w.untyped_storage(), 0, w.shape)])
def test_memory_in_another_layout_is_counted_once(view) -> None:
    model = Two().eval()
    with torch.no_grad():
        model.b.weight = nn.Parameter(view(model.a.weight.data))
    sites = rw.find(model, torch.randn(2, 24))
    assert sites.total_params == 24 * 24


def test_a_transposed_twin_stays_dense_with_the_reason() -> None:
    model = Two().eval()
    model.b.weight = nn.Parameter(model.a.weight.data.t())
    sites = rw.find(model, torch.randn(2, 24))
    assert sites["a"].dense_because == "its weight is tied to Linear (b)"
    assert sites["b"].dense_because == "its weight is tied to Linear (a)"


def test_neighbours_in_one_block_are_no_ties() -> None:
    model = Two().eval()
    block = torch.randn(2, 24, 24)
    model.a.weight, model.b.weight = nn.Parameter(block[0]), nn.Parameter(block[1])
    sites = rw.find(model, torch.randn(2, 24))
    assert sites.total_params == 2 * 24 * 24
    assert all(site.dense_because is None and not site.aliases for site in sites.values())


def test_a_part_of_a_weight_that_another_layer_reads_keeps_both_dense() -> None:
    model = nn.Sequential(nn.Linear(24, 24, bias=False), nn.Linear(24, 8, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data[4:12])  # eight rows of the first
    sites = rw.find(model, torch.randn(2, 24))
    assert sites.total_params == 24 * 24
    assert [site.dense_because for site in sites.values()] == [
        "its weight is tied to Linear (1)",
        "its weight is tied to Linear (0)",
    ]


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def test_parametrised_weights_are_computed_for_each_layer_and_tie_nothing() -> None:
    model = Two().eval()
    for layer in (model.a, model.b):
        parametrizations.weight_norm(layer)
    sites = rw.find(model, torch.randn(2, 24))
    assert all(site.dense_because is None and not site.aliases for site in sites.values())


def test_what_a_parametrisation_computes_from_may_be_tied() -> None:
    model = Two().eval()
    for layer in (model.a, model.b):
        parametrize.register_parametrization(layer, "weight", Halved())
    model.b.parametrizations.weight.original = model.a.parametrizations.weight.original
    sites = rw.find(model, torch.randn(2, 24))
    assert sites.total_params == 24 * 24
    assert str(sites["a"].dense_because).startswith("its weight is tied to ParametrizationList (b.parametrizations")


# What keeps layers dense, alone or as twins with one weight -----------------------------------------------------------


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + 1)


def _hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda module, given, output: None)
    return layer


def _stored(layer: nn.Linear) -> nn.Linear:
    layer.register_state_dict_post_hook(lambda module, state, prefix, metadata: None)
    return layer


def twins(change: Callable[[nn.Linear], nn.Linear], tied: bool) -> rw.Sites:
    model = Two().eval()
    model.b = change(model.b)
    if tied:
        model.b.weight = model.a.weight
    return rw.find(model, torch.randn(2, 24))


@pytest.mark.parametrize(
    "change, alone, tied",
    [
        (lambda layer: layer, None, None),
        (
            lambda layer: Own(24, 24, bias=False),
            "Own has a forward of its own, which a factorised layer would not run",
            "its weight is used directly by Own (b)",
        ),
        (
            _stored,
            "it has state dict hooks, which expect a weight that a factorised layer does not have",
            "it has state dict hooks, which expect a weight that a factorised layer does not have",
        ),
        (_hooked, None, "it has hooks of its own and shares its weight with another layer; remove one of the two"),
        (
            lambda layer: nn.Linear(24, 24),
            None,
            "its weight is tied to Linear (b), which has a different bias",
        ),
    ],
    ids=["plain", "own forward", "state dict hooks", "hooks", "bias"],
)
def test_reasons(change: Callable[[nn.Linear], nn.Linear], alone: str | None, tied: str | None) -> None:
    assert twins(change, tied=False)["b"].dense_because == alone
    assert twins(change, tied=True)["a"].dense_because == tied
