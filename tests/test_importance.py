"""Importance of neurons by the weight, by activations, and by the loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import make
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import rankwise as rw
from rankwise.formats.slr import Importance, SparseLowRank, Staircase
from rankwise.formats.weights import site_weight
from rankwise.importance import by_activation, by_cost, by_curvature, by_gradient, by_weight, of_plan, self_labelled
from rankwise.importance.truncated import truncated
from rankwise.kinds import output_first
from rankwise.linalg.sparse_low_rank import leading
from rankwise.statistics.moments import identity_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))


@pytest.fixture
def model() -> nn.Module:
    return make(net).double()


@pytest.fixture
def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, 12, generator=generator, dtype=torch.float64) * torch.linspace(0, 2, 12, dtype=torch.float64)
    return [(part, part[:, -4:].argmax(1)) for part in x.split(25)]  # the last batch is smaller


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
            wanted = float((loss(weight) - loss(U @ V)).abs())
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


LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(12, 9),
    lambda: nn.Linear(12, 9, bias=False),
    lambda: nn.Sequential(nn.Unflatten(1, (4, 3)), nn.Conv1d(4, 6, 3, padding=1, groups=2), nn.Flatten()),
    lambda: nn.Sequential(nn.Unflatten(1, (4, 3)), nn.Conv1d(4, 2, 2, bias=False), nn.Flatten()),
    lambda: nn.Sequential(nn.Unflatten(1, (4, 3)), nn.ConvTranspose1d(4, 6, 2, groups=2), nn.Flatten()),
    lambda: nn.Sequential(nn.Unflatten(1, (3, 4)), parametrizations.weight_norm(nn.Linear(4, 6)), nn.Flatten()),
]


def with_layer(build: Callable[[], nn.Module]) -> tuple[nn.Module, str]:
    """A network that begins with a layer, and the layer's name."""
    model = make(lambda: nn.Sequential(build(), nn.Tanh(), nn.LazyLinear(4))).double()
    model(torch.zeros(1, 12, dtype=torch.float64))
    return model, "0.1" if isinstance(model[0], nn.Sequential) else "0"  # type: ignore[index]


def test_by_curvature_is_exact_for_a_quadratic_loss() -> None:
    """Of one layer with inputs that come alone: then the Hessian of each sample is diagonal, and one draw is enough."""
    model = make(lambda: nn.Sequential(nn.Linear(8, 6))).double()
    site = rw.find(model, torch.zeros(1, 8, dtype=torch.float64))["0"]
    x = 3 * torch.eye(8, dtype=torch.float64)
    data = [(x, torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))]
    found = by_curvature(model, site, data, (1, 3), F.mse_loss, draws=1, passes=0)
    for values, wanted in zip(found, by_cost(model, site, data, (1, 3), F.mse_loss), strict=True):
        torch.testing.assert_close(values, wanted)


@pytest.mark.parametrize("build", LAYERS)
def test_by_curvature_adds_half_the_second_derivative(
    build: Callable[[], nn.Module], data: list[tuple[Tensor, Tensor]]
) -> None:
    """Random signs converge to the exact diagonal of the Hessian."""
    model, name = with_layer(build)
    site = rw.find(model, data[0][0])[name]
    found = by_curvature(model, site, data, (1, 1), draws=1000, passes=0)
    trial = truncated(model, site, (1, 1))
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))

    def loss(cut: Tensor, part_GTCQ: Tensor) -> Tensor:
        weight_GTCQ = trial.first_GTCQ + trial.further_GTCQ - cut * part_GTCQ
        weight = weight_GTCQ.flatten(0, 1).reshape(output_first(site.kind, trial.layer.weight, site.groups).shape)  # type: ignore[arg-type]
        given = {f"{name}.weight": output_first(site.kind, weight, site.groups)}
        return F.cross_entropy(torch.func.functional_call(trial.network, given, (x,)), y)

    cut = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for scores, dim in zip(found, (1, 0), strict=True):
        for group, neuron in ((0, 0), (site.groups - 1, scores.shape[1] - 1)):
            part_GTCQ = torch.zeros_like(trial.further_GTCQ)
            part_GTCQ[group].select(dim, neuron).copy_(trial.further_GTCQ[group].select(dim, neuron))
            (first,) = torch.autograd.grad(loss(cut, part_GTCQ), cut, create_graph=True)
            (second,) = torch.autograd.grad(first, cut)
            assert float(scores[group, neuron]) == pytest.approx(abs((first + second / 2).item()), rel=0.05, abs=2e-4)


@pytest.mark.parametrize("build", LAYERS)
def test_by_curvature_with_all_passes_is_the_exact_change(
    build: Callable[[], nn.Module], data: list[tuple[Tensor, Tensor]]
) -> None:
    model, name = with_layer(build)
    site = rw.find(model, data[0][0])[name]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = by_curvature(model, site, data, (1, 1), draws=1, passes=12)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for values, wanted in zip(found, by_cost(model, site, data, (1, 1)), strict=True):
        assert float(wanted.max()) > 1e-4
        torch.testing.assert_close(values, wanted)


def test_passes_bring_by_curvature_nearer_to_the_exact_change(
    model: nn.Module, data: list[tuple[Tensor, Tensor]]
) -> None:
    with torch.no_grad():
        model[0].weight.mul_(4)  # type: ignore[index]  # tanh saturates: two orders are not enough
    site = rw.find(model, data[0][0])["0"]
    wanted = by_cost(model, site, data, (1, 4)).outputs_GT
    errors = [
        float((by_curvature(model, site, data, (1, 4), passes=passes).outputs_GT - wanted).norm()) for passes in (0, 4)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_by_curvature_of_a_transformer() -> None:
    """Its fused path would pass by the layer, and fused attention has no second derivatives."""
    encoder = lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)  # noqa: E731
    model = make(lambda: nn.Sequential(encoder(), encoder(), nn.Flatten(), nn.Linear(24, 3))).double().eval()
    x = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data, site = self_labelled(model, [x]), rw.find(model, x)["0.linear1"]
    found = by_curvature(model, site, data, (1, 4), draws=1, passes=12)
    for values, wanted in zip(found, by_cost(model, site, data, (1, 4)), strict=True):
        torch.testing.assert_close(values, wanted)


def test_by_curvature_needs_a_row_for_each_sample() -> None:
    model = make(lambda: nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 3), nn.Unflatten(0, (-1, 5)), nn.Flatten()))
    x = torch.zeros(2, 5, 4)
    with pytest.raises(ValueError, match=r"site '1': its input has 10 rows for 2 samples.*use by_gradient"):
        by_curvature(model, rw.find(model, x)["1"], [(x, torch.zeros(2, dtype=torch.long))], (1, 1))


@pytest.mark.parametrize("options", [{"draws": 0}, {"passes": -1}])
def test_by_curvature_that_measures_nothing(model: nn.Module, options: dict[str, int]) -> None:
    site = rw.find(model, torch.zeros(1, 12, dtype=torch.float64))["0"]
    with pytest.raises(ValueError, match="must be at least 1 and 0"):
        by_curvature(model, site, [], (1, 1), **options)


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
