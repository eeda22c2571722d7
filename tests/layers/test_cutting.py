"""Chains at smaller ranks: the leading columns of their factors, in the same memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.formats import get_format, of_role
from rankwise.formats.weights import site_weight, weight_metrics
from rankwise.layers.kinds import Role

LAYERS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(12, 10), (3, 12)),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3, stride=2), (2, 6, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2), (2, 6, 5, 5)),
    "embedding": (lambda: nn.Embedding(11, 7), None),
}


def filled(name: str, rank: int) -> tuple[nn.Module, rw.LowRank, torch.Tensor]:
    """A dense layer, its chain by svd in the weight metric, and an input."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    network = nn.Sequential(make())
    x = torch.arange(6).reshape(2, 3) if shape is None else torch.randn(*shape)
    site, format = rw.find(network, x)["0"], get_format("svd")
    factors = format.fit(site, site_weight(network, site), weight_metrics(site), (rank,))
    bias = getattr(network[0], "bias", None)
    chain = format.build(network[0], (rank,), bias is not None)
    format.fill(chain, factors, bias)
    return network[0], chain, x


@pytest.mark.parametrize("name", LAYERS)
def test_a_cut_chain_is_the_fit_of_its_rank(name: str) -> None:
    _, chain, x = filled(name, 5)
    _, smaller, _ = filled(name, 2)
    part = chain.at(2)
    assert part.ranks == (2,)
    torch.testing.assert_close(part.weight + 0, smaller.weight + 0)
    torch.testing.assert_close(part(x), smaller(x))
    assert repr(part) == repr(smaller)
    assert sum(p.numel() for p in part.parameters()) == sum(p.numel() for p in smaller.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_more_ranks_are_never_worse(name: str) -> None:
    dense, chain, _ = filled(name, 6)
    errors = [float((chain.at(rank).weight - dense.weight).norm()) for rank in range(1, 7)]
    assert errors == sorted(errors, reverse=True)


def test_the_memory_is_the_same_and_the_whole_chain_stays() -> None:
    _, chain, x = filled("linear", 5)
    before = chain(x)
    part = chain.at((3,))
    assert part[0].weight.data_ptr() == chain[0].weight.data_ptr()
    torch.testing.assert_close(chain(x), before, atol=0, rtol=0)
    with torch.no_grad():
        chain[0].weight.mul_(2)
    torch.testing.assert_close(part[0].weight, chain[0].weight[:3])
    assert (chain.ranks, chain[0].out_features, part[0].out_features) == ((5,), 5, 3)


def test_a_cut_chain_can_be_copied_scripted_and_stored(tmp_path: Any) -> None:
    _, chain, x = filled("linear", 5)
    part = chain.at(2)
    torch.testing.assert_close(copy.deepcopy(part)(x), part(x))
    torch.testing.assert_close(torch.jit.script(part)(x), part(x))
    network = nn.Sequential(copy.deepcopy(part))
    rw.save(network, tmp_path / "out")
    torch.testing.assert_close(rw.load(nn.Sequential(nn.Linear(12, 10)), tmp_path / "out")(x), part(x))


@pytest.mark.parametrize(
    ("ranks", "message"), [((0,), "up to 5"), ((6,), "up to 5"), ((2, 2), "one rank"), (7, "up to 5")]
)
def test_ranks_that_it_cannot_have(ranks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled("linear", 5)[1].at(ranks)


def test_groups_and_other_formats_cannot_be_cut() -> None:
    grouped = get_format("svd").build(nn.Conv2d(8, 8, 3, groups=2), (3,), True)
    with pytest.raises(ValueError, match="2 groups"):
        grouped.at(2)
    site = rw.find(nn.Sequential(nn.Conv2d(8, 8, 3)), torch.zeros(1, 8, 5, 5))["0"]
    for format in (format for name, format in of_role(Role.LAYER).items() if name != "svd"):
        chain = format.build(nn.Conv2d(8, 8, 3), format.limits(site), True)
        with pytest.raises(ValueError, match="not nested; fit it at"):
            chain.at(tuple(1 for _ in chain.ranks))
