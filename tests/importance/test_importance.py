"""Importance of neurons by the weight, by activations, and by the loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.nets import make
from torch import Tensor, nn

import rankwise as rw
from rankwise.formats.slr import Importance, SparseLowRank, Staircase
from rankwise.formats.weights import site_weight
from rankwise.importance import by_activation, by_cost, by_curvature, by_gradient, by_weight, of_plan, self_labelled
from rankwise.linalg.splitting import leading
from rankwise.statistics.moments import identity_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def test_by_weight_sums_up_and_ranks_a_zero_row_last(model: nn.Module) -> None:
    layer = model[0]  # type: ignore[index]
    with torch.no_grad():
        layer.weight[3] = 0
    site = rw.find(model, torch.zeros(1, 12, dtype=torch.float64))["0"]
    found = by_weight(model, site)
    torch.testing.assert_close(found.inputs_GC, layer.weight.abs().sum(0)[None])
    assert found.outputs_GT[0].argmin() == 3


def test_by_activation_is_what_the_data_says(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> None:
    stats = rw.collect(model, [x for x, _ in data])
    x = torch.cat([x for x, _ in data])
    found = by_activation(model, stats, stats.sites["0"])
    layer = model[0]  # type: ignore[index]
    torch.testing.assert_close(found.inputs_GC[0], x.square().mean(0).sqrt(), atol=1e-6, rtol=1e-5)
    outputs = (x @ layer.weight.mT).square().mean(0).sqrt()
    torch.testing.assert_close(found.outputs_GT[0], outputs.detach(), atol=1e-6, rtol=1e-5)
    assert found.inputs_GC[0, 0] == 0


def test_by_cost_is_the_change_of_the_loss(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> None:
    site = rw.find(model, data[0][0])["0"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = by_cost(model, site, data, (2, 3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    U, V = leading(site_weight(model, site), 5)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, {"0.weight": weight}, (x,)), y)

    for neuron in (0, 5):
        cut_U, cut_V = U.clone(), V.clone()
        cut_U[neuron, 2:], cut_V[2:, neuron] = 0, 0
        for scores, weight in ((found.outputs_GT, cut_U @ V), (found.inputs_GC, U @ cut_V)):
            wanted = (loss(weight) - loss(U @ V)).abs().item()
            assert float(scores[0, neuron]) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_by_gradient_is_the_derivative_towards_cutting_off(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> None:
    site = rw.find(model, data[0][0])["0"]
    found = by_gradient(model, site, data, (2, 3))
    U, V = leading(site_weight(model, site), 5)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))

    def loss(weight: Tensor) -> float:
        return float(F.cross_entropy(torch.func.functional_call(model, {"0.weight": weight}, (x,)), y))

    step = 1e-4
    for neuron in (1, 8):
        further = U[:, 2:] @ V[2:]
        rows, columns = torch.zeros_like(further), torch.zeros_like(further)
        rows[neuron], columns[:, neuron] = further[neuron], further[:, neuron]
        for scores, part in ((found.outputs_GT, rows), (found.inputs_GC, columns)):
            slope = (loss(U @ V + step * part) - loss(U @ V - step * part)) / (2 * step)
            assert float(scores[0, neuron]) == pytest.approx(abs(slope), rel=1e-4, abs=1e-10)


@pytest.mark.parametrize("criterion", [by_cost, by_gradient, by_curvature])
def test_components_without_energy_cost_nothing(criterion: Callable[..., object]) -> None:
    model = nn.Sequential(nn.Linear(5, 4)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.outer(torch.arange(4.0), torch.ones(5)))
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    site = rw.find(model, x)["0"]
    scores = criterion(model, site, [(x, x[:, :4])], (1, 2), F.mse_loss)
    assert all(float(values.abs().max()) < 1e-12 for values in scores)  # type: ignore[attr-defined]


@pytest.mark.parametrize("criterion", [by_cost, by_gradient, by_curvature])
def test_data_without_samples(model: nn.Module, criterion: Callable[..., object]) -> None:
    site = rw.find(model, torch.zeros(1, 12, dtype=torch.float64))["0"]
    with pytest.raises(ValueError, match="the data has no samples"):
        criterion(model, site, [], (1, 1))


@pytest.mark.parametrize("ranks", [(0, 0), (-1, 3), (5, 5)])
def test_ranks_that_are_not_legal(model: nn.Module, ranks: tuple[int, int]) -> None:
    site = rw.find(model, torch.zeros(1, 12, dtype=torch.float64))["0"]
    with pytest.raises(ValueError, match=r"site '0': ranks .* add up to 1 to 9"):
        by_gradient(model, site, [], ranks)


def test_convolutions_are_scored_by_channel_and_group() -> None:
    model = make(lambda: nn.Sequential(nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(), nn.Linear(54, 3))).double()
    x = torch.randn(6, 8, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stats, data = rw.collect(model, [x], positions="all"), self_labelled(model, [x])
    site = stats.sites["0"]
    found = by_weight(model, site), by_activation(model, stats, site), by_cost(model, site, data, (1, 1))
    for scores in (*found, by_gradient(model, site, data, (1, 1)), by_curvature(model, site, data, (1, 1))):
        assert scores.inputs_GC.shape == (2, 4)
        assert scores.outputs_GT.shape == (2, 3)
        assert float(scores.inputs_GC.min()) >= 0


def test_given_importance_selects(model: nn.Module) -> None:
    site = rw.find(model, torch.zeros(1, 12, dtype=torch.float64))["0"]
    scores = by_weight(model, site)
    format = SparseLowRank({"0": scores})
    factors = format.fit(site, site_weight(model, site), identity_metrics(1, 12), (0, 2, 4, 3))
    read = factors.dense().abs().sum(0).nonzero().flatten().tolist()
    assert read == sorted(scores.inputs_GC[0].topk(4).indices.tolist())
    made = factors.dense().abs().sum(1).nonzero().flatten().tolist()
    assert made == sorted(scores.outputs_GT[0].topk(3).indices.tolist())


@pytest.mark.parametrize(
    "criterion, rule",
    [("weight", by_weight), ("activation", by_activation), ("cost", by_gradient), ("curvature", by_curvature)],
)
def test_importance_of_a_plan(
    model: nn.Module, data: list[tuple[Tensor, Tensor]], criterion: str, rule: Callable[..., Importance]
) -> None:
    """Of every layer in slr and slr3, and of no other; the fits then select by it."""
    stats = rw.collect(model, [x for x, _ in data])
    pins = {"0": ("slr3", (1, 1, 8, 6, 1, 4, 3)), "2": "svd:2"}
    plan = rw.choose(model, stats, keep={"params": 1.0}, pin=pins)
    with torch.no_grad():
        found = of_plan(model, plan, stats, criterion, data)
    assert found.keys() == {"0"}
    given: tuple[object, ...] = (stats,) if criterion == "activation" else ()
    rest = ((data, (1, 2)),) if criterion in ("cost", "curvature") else ()
    wanted = rule(model, *given, stats.sites["0"], *(rest[0] if rest else ()))
    assert all(map(torch.equal, found["0"], wanted))
    small = rw.factorise(model, plan, stats, formats={"slr3": Staircase(found)})
    read = set(small[0][0].inputs.tolist())  # type: ignore[index]
    assert read == set(wanted.inputs_GC[0].topk(8).indices.tolist())


def test_importance_that_cannot_be_had(model: nn.Module) -> None:
    sites = rw.find(model, torch.zeros(1, 12, dtype=torch.float64))
    plan = rw.choose(model, sites, keep={"params": 1.0}, metric="weight", pin={"0": ("slr", (1, 1, 6, 6))})
    for criterion, message in (
        ("size", "unknown criterion 'size'; the criteria are weight, activation, cost, curvature"),
        ("activation", "needs statistics"),
        ("cost", "needs inputs and targets"),
        ("curvature", "needs inputs and targets"),
    ):
        with pytest.raises(ValueError, match=message):
            of_plan(model, plan, sites, criterion)
    dense = rw.choose(model, sites, keep={"params": 1.0}, metric="weight", ignore=["*"])
    with pytest.raises(ValueError, match="no layer of the plan is in slr"):
        of_plan(model, dense, sites, "weight")
