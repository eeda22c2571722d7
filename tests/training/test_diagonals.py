"""Two diagonals for each chain: what they compute, what is trained, and what is left when they are merged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.training import merge_diagonals_, scale_diagonals_

pytestmark = pytest.mark.usefixtures("one_thread")


def small() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12))
    sites = rw.find(model, torch.randn(2, 16))
    return rw.factorise(model, rw.choose(model, sites, keep={"params": 0.7}, metric="weight"), sites)


def test_as_the_published_equation_says() -> None:
    """`(B A + diag(b) B_K diag(d) A_K) x`."""
    network, x = small(), torch.randn(5, 16)
    chain = network[0]
    A, B, bias = (each.detach().clone() for each in (chain[0].weight, chain[1].weight, chain[1].bias))
    parameters = scale_diagonals_(network, rank=2, seed=1)
    b, d = parameters[:2]
    picked = chain[1].parametrizations.weight[0].picked_K
    assert d.tolist() == pytest.approx([0.1, 0.1])
    assert not b.any()
    with torch.no_grad():
        b.copy_(torch.randn(16))
        d.copy_(torch.randn(2))
    whole = B @ A + b.diag() @ B[:, picked] @ d.diag() @ A[picked]
    torch.testing.assert_close(chain(x), x @ whole.mT + bias)
    before = network(x)
    merge_diagonals_(network)
    torch.testing.assert_close(network(x), before)
    assert type(chain[1]) is nn.Linear
    assert sorted(network.state_dict()) == sorted(small().state_dict())


def test_only_diagonals_are_trained() -> None:
    network, x = small(), torch.randn(64, 16)
    frozen = {name: value.clone() for name, value in network.state_dict().items()}
    target = network(x).detach() + 0.1 * torch.randn(64, 12)
    optimiser = torch.optim.Adam(scale_diagonals_(network), 2e-3)
    losses = []
    for _ in range(40):
        loss = (network(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    merge_diagonals_(network)
    assert all(parameter.requires_grad for parameter in network.parameters())
    changed = [name for name, value in network.state_dict().items() if not torch.equal(value, frozen[name])]
    assert changed == ["0.1.weight", "2.1.weight"]


def test_what_has_no_chains() -> None:
    with pytest.raises(ValueError, match="no chain of two linear layers"):
        scale_diagonals_(nn.Sequential(nn.Linear(4, 4)))
    network = small()
    scale_diagonals_(network)
    with pytest.raises(ValueError, match="diagonals already"):
        scale_diagonals_(network)
    with pytest.raises(ValueError, match="rank is 0"):
        scale_diagonals_(small(), rank=0)
