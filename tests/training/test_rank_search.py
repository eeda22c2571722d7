"""Mixtures of fits, the loss of the weights, and the search as a whole on a network with a known answer."""

from __future__ import annotations

import pytest
import torch
from support.nets import Residual, batches_of, make
from torch import Tensor, nn
from torch.func import functional_call

import rankwise as rw
from rankwise.planning.constraints import Constraints
from rankwise.training import RankSearch

pytestmark = pytest.mark.usefixtures("one_thread")


def convolution(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(6, 10, 3, stride=2, padding=1, groups=2)).double()


def searched(model: nn.Module, *shape: int, **options: object) -> RankSearch:
    example = torch.randn(1, *shape, dtype=next(model.parameters()).dtype)
    return RankSearch(model, rw.find(model, example), **options)  # type: ignore[arg-type]


def with_weight(model: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    return functional_call(model, {"0.weight": weight}, (x,))


def test_one_candidate_and_mixtures() -> None:
    """All weight on a candidate is its convolution; a mixture of weights is the mixture of the convolutions."""
    model, x = convolution(), torch.randn(4, 6, 9, 9, dtype=torch.float64)
    search = searched(model, 6, 9, 9)
    fits_K = search.fits["0"]
    outputs_K = torch.stack([with_weight(model, fit, x) for fit in fits_K])
    for place in range(len(fits_K)):
        with torch.no_grad():
            search.alphas["0"].zero_()[place] = 1000
        torch.testing.assert_close(functional_call(model, search.mixed(), (x,)), outputs_K[place])
    with torch.no_grad():
        search.alphas["0"].copy_(torch.linspace(-1, 1, len(fits_K)))
    expected = torch.tensordot(search.weights("0").double(), outputs_K, 1)
    torch.testing.assert_close(functional_call(model, search.mixed(), (x,)), expected)
    torch.testing.assert_close(outputs_K[-1], model(x))  # dense is among them


@pytest.mark.parametrize("unit, beta", [("macs", 1.0), ("params", 2.0)])
def test_the_share_of_the_cost(unit: str, beta: float) -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 20)).double()
    search = searched(model, 20, unit=unit, beta=beta)
    for alpha_K in search.alphas.values():
        alpha_K.data = torch.linspace(0.5, -0.3, len(alpha_K), dtype=torch.float64)
    search.share().backward()
    assert 0 < float(search.share().detach()) < 1
    for alpha_K in search.alphas.values():
        assert alpha_K.grad is not None
        for place in range(len(alpha_K)):
            ends = []
            for step in (1e-6, -1e-6):
                alpha_K.data[place] += step
                ends.append(float(search.share().detach()))
                alpha_K.data[place] -= step
            assert float(alpha_K.grad[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-9)
    before = float(search.share().detach())
    for alpha_K in search.alphas.values():
        alpha_K.data[0] += 1  # the cheapest candidate
    assert float(search.share().detach()) < before


def test_a_weight_of_a_known_rank() -> None:
    """The distance of a candidate is zero from that rank on, and that of a mixture if no weight lies below."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 60, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(60, 20) @ torch.randn(20, 60))  # type: ignore[operator]
    search = searched(model, 60, candidates=60, formats=["svd"])
    ranks = [option.ranks[0] if option.ranks else 60 for option in search.options["0"]]
    assert 20 in ranks
    whole = float(model[0].weight.detach().norm())  # type: ignore[operator]
    distances = (search.fits["0"] - model[0].weight).flatten(1).norm(dim=1) / whole
    for rank, distance in zip(ranks, distances.tolist(), strict=True):
        assert (distance < 1e-6) == (rank >= 20)
    enough = torch.tensor([rank >= 20 for rank in ranks])
    search.alphas["0"].data = torch.where(enough, 0.0, -1e4)
    assert float(search.penalty().detach()) < 1e-12 * whole**2
    search.alphas["0"].data = torch.zeros(len(ranks))
    assert float(search.penalty().detach()) > 1e-3 * whole**2


def test_the_penalty_moves_weights_alone_and_refits_follow() -> None:
    model = convolution()
    search = searched(model, 6, 9, 9)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    before = float(search.distance().detach())
    assert float(search.penalty().detach()) == pytest.approx(before * float(search.share().detach()))
    for _ in range(60):
        optimiser.zero_grad()
        search.penalty().backward()
        assert all(alpha_K.grad is None for alpha_K in search.parameters())
        optimiser.step()
        search.refit()
    assert float(search.distance().detach()) < 0.3 * before
    assert all(option.error < 1 for option in search.options["0"])


def test_alphas_find_the_layer_that_may_be_small() -> None:
    """The second layer of two is of rank one, so its cheapest candidate is as good as dense."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)).double()
    with torch.no_grad():
        model[2].weight.copy_(torch.randn(32, 1) @ torch.randn(1, 32))  # type: ignore[operator]
    x = torch.randn(64, 32, dtype=torch.float64)
    target = model(x).detach()
    search = searched(model, 32, formats=["svd"])
    optimiser = torch.optim.Adam(search.parameters(), lr=0.1)
    for _ in range(80):
        optimiser.zero_grad()
        outputs = functional_call(model, search.mixed(), (x,))
        ((outputs - target).square().mean() / target.square().mean() + 0.1 * search.share()).backward()
        optimiser.step()
    plan = search.plan()
    assert plan["2"].ranks == (1,)
    assert (plan.rule, plan["2"].why.split(",")[0][:19]) == ("rank_search", "rank_search: weight")
    tight = search.plan({"params": 0.5})
    assert tight.planned["params"] <= 0.5 * tight.dense["params"]
    assert tight["2"].ranks == (1,)
    assert rw.find(rw.factorise(model, tight, search.sites), x[:1]).total_params == tight.planned["params"]


def test_a_whole_network_and_its_constraints() -> None:
    model = make(Residual)
    x = batches_of(4, 3, 16, 16)[0]
    search = RankSearch(model, rw.find(model, x[:1]), constraints=Constraints(ignore="head"), candidates=4)
    assert "head" not in search.options
    assert {len(options) for options in search.options.values()} <= {2, 3, 4}
    outputs = functional_call(model, search.mixed(), (x,))
    (outputs.square().mean() * search.share()).backward()
    assert all(alpha_K.grad is not None and bool(alpha_K.grad.isfinite().all()) for alpha_K in search.parameters())
    plan = search.plan({"macs": 0.5})
    assert plan.planned["macs"] <= 0.5 * plan.dense["macs"]
    assert plan["head"].format == "dense"


def test_complaints() -> None:
    model = convolution()
    with pytest.raises(ValueError, match="candidates is 1; at least 2 are needed"):
        searched(model, 6, 9, 9, candidates=1)
    with pytest.raises(ValueError, match="unit 'bytes' is not one of macs, params"):
        searched(model, 6, 9, 9, unit="bytes")
    with pytest.raises(ValueError, match="no site can be factorised"):
        searched(model, 6, 9, 9, constraints=Constraints(ignore="*"))
    with pytest.raises(ValueError, match="cannot be met"):
        searched(model, 6, 9, 9).plan({"macs": 0.01})
