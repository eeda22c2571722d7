"""Balancing leaves the function of every chain alone and makes both sides of every bond equal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rankwise as rw
from rankwise import FORMATS, LowRank
from rankwise.formats.svd import SVD
from rankwise.layers.kinds import Role
from rankwise.surgery.rebuild import rebuild
from rankwise.training.balance import balance_, bonds, norms

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 8), (5, 12)),
    "3 x 3": (lambda: nn.Conv2d(8, 6, 3, padding=1), (2, 8, 7, 6)),
    "grouped": (lambda: nn.Conv2d(8, 12, (3, 2), (2, 1), groups=2, bias=False), (2, 8, 7, 6)),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(8, 6, (3, 4), (2, 3), 1, groups=2), (2, 8, 5, 4)),
}
# Behind an arrangement of channels, or where some are handed on, there is no bond to balance.
WITHOUT_BONDS = {"pivoted_svd"}


def unbalanced(format: str, name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network of one chain, whose parameters have very different sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer, x = LAYERS[name][0](), torch.randn(LAYERS[name][1])
        network = nn.Sequential(layer)
        site = rw.find(network, x)["0"]
        kind = FORMATS[format]
        if reason := kind.refuses(site):
            pytest.skip(reason)
        ranks = tuple(max(1, limit // 2) for limit in kind.limits(site))
        chain = kind.build(layer, ranks, bias=layer.bias is not None)
        for parameter in chain.parameters():
            sizes = torch.exp(2 * torch.randn(len(parameter), *[1] * (parameter.dim() - 1)))
            parameter.data = torch.randn_like(parameter) * sizes
    return nn.Sequential(chain), x


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("format", FORMATS)
@torch.no_grad()
def test_every_format(format: str, name: str) -> None:
    network, x = unbalanced(format, name)
    before, chain = network(x), network[0]
    assert isinstance(chain, LowRank)
    balance_(network)
    assert float((network(x) - before).norm() / before.norm()) < 1e-5
    for bond in bonds(chain):
        written, is_read = norms(bond)
        torch.testing.assert_close(written, is_read, rtol=1e-5, atol=0)


def test_formats_have_bonds() -> None:
    """Without any, the test above would pass for nothing."""
    found = {format: len(bonds(unbalanced(format, "linear")[0][0])) for format in ("svd", "slr", "slr3", "pivoted_svd")}
    assert found == {"svd": 1, "slr": 1, "slr3": 1, "pivoted_svd": 0}
    found = {format: len(bonds(unbalanced(format, "grouped")[0][0])) for format in ("spatial_svd", "tucker2", "cp")}
    assert found == {"spatial_svd": 1, "tucker2": 2, "cp": 3}


@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(-6, 6))
@settings(max_examples=25, deadline=None)
def test_known_answer(seed: int, rank: int, power: float) -> None:
    """One rank of an SVD: sizes a and b become sqrt(a b) both; what is balanced stays as it is."""
    torch.manual_seed(seed)
    chain = SVD().build(nn.Linear(6, 4), (min(rank, 4),), bias=True)
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.normal_()
        chain[0].weight.mul_(10**power)
    first, last = chain[0].weight.norm(dim=1), chain[1].weight.norm(dim=0)
    balance_(chain)
    torch.testing.assert_close(chain[0].weight.norm(dim=1), (first * last).sqrt(), rtol=1e-5, atol=0)
    again = chain[0].weight.clone()
    balance_(chain)
    torch.testing.assert_close(chain[0].weight, again, rtol=1e-6, atol=0)


def test_channels_of_zeros_stay() -> None:
    chain = SVD().build(nn.Linear(6, 4), (2,), bias=False)
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.fill_(3.0)
        chain[0].weight[0] = 0
    balance_(chain)
    assert bool(torch.isfinite(chain[0].weight).all())
    assert torch.equal(chain[1].weight[:, 0], torch.full((4,), 3.0))


def test_an_embedding_and_its_head_share_what_is_balanced() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9, bias=False))
    network[1].weight = network[0].weight
    rebuild(network, Role.TIED, ["0", "1"], SVD(), (3,), bias=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_().mul_(torch.tensor([1e-2, 1.0, 1e2])) if parameter.shape[1] == 3 else parameter.normal_()
    numbers = torch.arange(9)
    before = network(numbers)
    balance_(network)
    torch.testing.assert_close(network(numbers), before, rtol=1e-4, atol=1e-4)
    assert network[1][1].weight is network[0][0].weight
