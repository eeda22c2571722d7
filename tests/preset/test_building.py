"""Factorised layers from scratch: the variance of the weight, and what cannot be built."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.formats import FORMATS
from rankwise.preset import Refactorised, WarmUp, build, build_network, refactorise_
from rankwise.training import Loop, LoopOptions, Samples

pytestmark = pytest.mark.usefixtures("one_thread")
LAYERS = {
    "linear": nn.Linear(48, 64),
    "conv": nn.Conv2d(16, 24, 3, stride=2, padding=1),
    "transposed": nn.ConvTranspose2d(16, 12, 3, stride=2),
}


def middle_ranks(layer: nn.Module, format: rw.formats.Format, x: torch.Tensor) -> tuple[int, ...] | None:
    (site,) = rw.find(nn.Sequential(layer), x).values()
    if format.refuses(site):
        return None
    return tuple(max(limit // 3, 1) for limit in format.limits(site))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "kind", ["linear", *(pytest.param(name, marks=pytest.mark.slow) for name in ("conv", "transposed"))]
)
def test_the_weight_has_the_variance_of_kaiming(name: str, kind: str) -> None:
    layer, format = LAYERS[kind], FORMATS[name]
    x = torch.randn(64, 48) if kind == "linear" else torch.randn(2, 16, 9, 9)
    ranks = middle_ranks(layer, format, x[:1])
    if ranks is None:
        with pytest.raises(ValueError, match=f"a chain of {name} cannot be built for"):
            build(layer, name, 1)
        return
    torch.manual_seed(0)
    chain = build(layer, name, ranks)
    weight = chain.weight.detach()
    inputs = 48 if kind == "linear" else 16 * 9
    if kind == "transposed":
        inputs = 16 * 9
    assert float(weight.square().mean()) == pytest.approx(2 / inputs, rel=1e-3)
    assert chain.ranks == ranks
    wanted = torch.zeros_like(layer.bias) if name == "pivoted_svd" else layer.bias
    assert torch.equal(chain.bias, wanted)
    assert torch.isfinite(chain(x)).all()
    spreads = [
        float(p.detach().std()) for n, p in chain.named_parameters() if not n.endswith("bias") and p.numel() > 64
    ]
    assert max(spreads) < 1.6 * min(spreads)  # every factor has its share


def test_the_variance_of_a_pair_is_that_of_paths() -> None:
    """`Var(core) = (Var(W) / N)^(1/2)` with N the rank, within the error of the draw."""
    torch.manual_seed(0)
    first, last = build(nn.Linear(128, 128), "svd", 16)
    wanted = (2 / 128 / 16) ** 0.5
    # The variance of 2048 squares of normal numbers is known to 2 / sqrt(2 * 2048) of it, twice.
    assert float(first.weight.var()) == pytest.approx(wanted, rel=0.1)
    assert float(last.weight.var()) == pytest.approx(wanted, rel=0.1)
    assert float(build(nn.Linear(128, 128), "svd", 16, nonlinearity="linear").weight.var()) == pytest.approx(
        1 / 128, rel=0.02
    )


def test_what_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="ReLU is no layer that can be factorised; give a linear layer"):
        build(nn.ReLU(), "svd", 2)
    with pytest.raises(ValueError, match="svd cannot have ranks"):
        build(nn.Linear(8, 8), "svd", 9)
    with pytest.raises(ValueError, match="unknown format 'sdv'; did you mean svd"):
        build(nn.Linear(8, 8), "sdv", 2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 32))


def test_networks_are_built_by_a_plan() -> None:
    model, x = network(), torch.randn(2, 4, 6, 6)
    sites = rw.find(model, x)
    plan = rw.choose(model, sites, keep={"params": 0.3}, metric="weight", formats=["svd", "tucker2"])
    built = build_network(model, plan, sites)
    assert sum(p.numel() for p in built.parameters()) == plan.planned["params"]
    for row in plan.factorised:
        chain = built.get_submodule(row.site)
        assert float(chain.weight.square().mean()) == pytest.approx(2 / sites[row.site].in_features, rel=1e-3)
        assert torch.equal(chain.bias, model.get_submodule(row.site).bias)
    assert torch.isfinite(built(x)).all()


def test_refactorising_changes_nothing_but_the_factors() -> None:
    model = nn.Sequential(build(nn.Conv2d(8, 8, 3, groups=2), "svd", 3), build(nn.Conv2d(8, 8, 3), "tucker2", (4, 4)))
    x = torch.randn(2, 8, 7, 7)
    before = model(x)
    optimiser = torch.optim.SGD(model.parameters(), 1e-5, momentum=0.9)
    model(x).square().sum().backward()
    optimiser.step()
    with torch.no_grad():
        before = model(x)
    assert optimiser.state
    refactorise_(model, optimiser)
    assert not optimiser.state
    assert torch.allclose(model(x), before, atol=1e-4)
    first, last = model[0]
    V, U = first.weight.reshape(2, 3, -1), last.weight.reshape(2, 4, 3)
    for G in range(2):
        gram = U[G].mT @ U[G]
        assert torch.allclose(gram, V[G] @ V[G].mT, atol=1e-5)
        assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-5)
    with pytest.raises(ValueError, match="has no chain of factors"):
        refactorise_(nn.Sequential(nn.Linear(2, 2)))


def trained(told: WarmUp | Refactorised, model: nn.Module, epochs: float, **options: float) -> Loop:
    x = torch.randn(120, 16, generator=torch.Generator().manual_seed(0))
    y = x @ torch.randn(16, 2, generator=torch.Generator().manual_seed(1)) @ torch.randn(2, 16)
    how = LoopOptions(epochs=epochs, batch=36, rate=options.get("rate", 0.02))
    loss = lambda x, y: (model(x) - y).square().mean()  # noqa: E731
    loop = Loop(model, loss, Samples.of(x, labels=y), how, techniques=[told])
    loop.run()
    return loop


def test_refactorising_in_a_loop() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(build(nn.Linear(16, 16), "svd", 4))
    loop = trained(Refactorised(every=2), model, 6)
    assert loop.looks[-1].held_out < loop.looks[0].held_out


def test_the_warm_up_ends_when_ranks_settle() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16))
    told = WarmUp(rw.find(model, torch.randn(1, 16)), settled=0.002)
    loop = trained(told, model, 200, rate=0.03)
    assert loop.share < 1
    assert loop.plan is not None
    # At the start the scaled stable rank is the full rank; the target has rank 2.
    (rank,) = loop.plan["0"].ranks
    assert rank == math.ceil(told.ranks()["0"])
    assert rank <= 6
    other = WarmUp(rw.find(model, torch.randn(1, 16)))
    other.load_state_dict(copy.deepcopy(told.state_dict()))
    assert other.first == told.first


def test_mistakes() -> None:
    sites = rw.find(nn.Sequential(nn.Linear(4, 4)), torch.randn(1, 4))
    with pytest.raises(ValueError, match="settled is 0, above 0"):
        WarmUp(sites, settled=0)
    with pytest.raises(ValueError, match="every is 0"):
        Refactorised(0)
