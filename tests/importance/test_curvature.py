"""Importance of neurons to second order: brute-force Hessians, exact changes, and layers of every kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.nets import make, unchanged
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import rankwise as rw
from rankwise.importance import by_cost, by_curvature, by_gradient, self_labelled
from rankwise.importance.truncated import truncated
from rankwise.layers.kinds import output_first

pytestmark = pytest.mark.usefixtures("one_thread")

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


# A thousand draws take seconds; layers of the other kinds are compared with the exact change, in the test after it.
@pytest.mark.parametrize(
    "build", [pytest.param(build, marks=[pytest.mark.slow] * (at not in (0, 2))) for at, build in enumerate(LAYERS)]
)
def test_by_curvature_adds_half_the_second_derivative(
    build: Callable[[], nn.Module], data: list[tuple[Tensor, Tensor]]
) -> None:
    """Random signs converge to the exact diagonal of the Hessian."""
    model, name = with_layer(build)
    site = rw.find(model, data[0][0])[name]
    found = by_curvature(model, site, data, (1, 1), draws=1000, passes=0)
    first_order, trial = by_gradient(model, site, data, (1, 1)), truncated(model, site, (1, 1))
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))

    def loss(cut: Tensor, part_GTCQ: Tensor) -> Tensor:
        weight_GTCQ = trial.first_GTCQ + trial.further_GTCQ - cut * part_GTCQ
        weight = weight_GTCQ.flatten(0, 1).reshape(output_first(site.kind, trial.layer.weight, site.groups).shape)  # type: ignore[arg-type]
        given = {f"{name}.weight": output_first(site.kind, weight, site.groups)}
        return F.cross_entropy(torch.func.functional_call(trial.network, given, (x,)), y)

    cut = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for scores, slopes, dim in zip(found, first_order, (1, 0), strict=True):
        for group, neuron in ((0, 0), (site.groups - 1, scores.shape[1] - 1)):
            part_GTCQ = torch.zeros_like(trial.further_GTCQ)
            part_GTCQ[group].select(dim, neuron).copy_(trial.further_GTCQ[group].select(dim, neuron))
            (first,) = torch.autograd.grad(loss(cut, part_GTCQ), cut, create_graph=True)
            assert float(slopes[group, neuron]) == pytest.approx(abs(first.item()))
            (second,) = torch.autograd.grad(first, cut)
            assert float(scores[group, neuron]) == pytest.approx(abs((first + second / 2).item()), rel=0.05, abs=2e-4)


@pytest.mark.parametrize("build", LAYERS)
def test_by_curvature_with_all_passes_is_the_exact_change(
    build: Callable[[], nn.Module], data: list[tuple[Tensor, Tensor]]
) -> None:
    model, name = with_layer(build)
    site = rw.find(model, data[0][0])[name]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with unchanged(model):
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
