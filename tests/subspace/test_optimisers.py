from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from support.walks import flat, network, trained
from torch import Tensor, nn

from rankwise.subspace import ProjectedBFGS, ProjectedSGD, Subspace, dldr
from rankwise.subspace.projected_sgd import Projected

OPTIMISERS = (ProjectedSGD, ProjectedBFGS)


class Quadratic(nn.Module):
    """`(theta - wanted)^T Q (theta - wanted) / 2` of its one parameter."""

    def __init__(self, numbers: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        A = torch.randn(numbers, numbers, generator=generator, dtype=torch.float64)
        self.Q, self.wanted = (
            A @ A.mT / numbers + torch.eye(numbers),
            torch.randn(numbers, generator=generator).double(),
        )
        self.theta = nn.Parameter(torch.zeros(numbers, dtype=torch.float64))

    def forward(self) -> Tensor:
        missed = self.theta - self.wanted
        return missed @ self.Q @ missed / 2


def line(model: Quadratic, dim: int) -> Subspace:
    """Directions of a random walk."""
    generator = torch.Generator().manual_seed(4)
    states = [{"theta": torch.randn(12, generator=generator).double()} for _ in range(dim + 1)]
    return dldr(model, states, dim, dtype=torch.float64)


def closure_of(model: nn.Module, optimiser: Projected, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


@pytest.mark.parametrize("make", OPTIMISERS)
def test_reaches_the_minimiser_in_the_subspace(make: type[Projected]) -> None:
    model = Quadratic()
    space = line(model, 5)
    optimiser = make(model, space, lr=0.1) if make is ProjectedSGD else make(model, space)  # type: ignore[call-arg]
    closure = closure_of(model, optimiser, model)
    for _ in range(400 if make is ProjectedSGD else 60):
        optimiser.step(closure)
    P = space.directions["theta"]
    wanted_D = torch.linalg.solve(P @ model.Q @ P.mT, P @ model.Q @ (model.wanted - space.start["theta"]))
    assert torch.allclose(optimiser.coordinates, wanted_D, atol=1e-6)


def test_the_inverse_stays_symmetric_and_positive() -> None:
    model = Quadratic()
    optimiser = ProjectedBFGS(model, line(model, 5))
    closure, losses = closure_of(model, optimiser, model), []
    for _ in range(20):
        losses.append(float(optimiser.step(closure)))
        assert torch.allclose(optimiser.inverse, optimiser.inverse.mT, atol=1e-9)
        assert torch.linalg.eigvalsh(optimiser.inverse)[0] > 0
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("make", OPTIMISERS)
def test_zero_coordinates_are_the_start_bit_for_bit(make: type[Projected]) -> None:
    model = network()
    states = trained(model)
    make(model, dldr(model, states, 4))
    assert all(torch.equal(parameter, states[0][name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("make", OPTIMISERS)
def test_the_network_stays_in_the_subspace(make: type[Projected]) -> None:
    model = network()
    space = dldr(model, trained(model), 4)
    optimiser = make(model, space, lr=0.1)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    closure = closure_of(model, optimiser, lambda: nn.functional.cross_entropy(model(x), y))
    statistics = model.get_buffer("1.running_mean").clone()
    for _ in range(30):
        optimiser.step(closure)
    names = list(space.start)
    moved = flat(dict(model.named_parameters()), names) - flat(dict(space.start), names)
    P_DN = torch.cat([space.directions[name] for name in names], 1).double()
    assert moved.norm() > 1e-2
    assert (moved - (moved @ P_DN.mT) @ P_DN).norm() < 1e-5 * moved.norm()
    assert not torch.equal(model.get_buffer("1.running_mean"), statistics)


def test_sgd_is_sgd_on_projected_gradients() -> None:
    """Against torch's own, with every gradient replaced by P^T P g."""
    model = network().double().eval()
    space = dldr(model, trained(model), 4, dtype=torch.float64)
    other = copy.deepcopy(model)
    ours = ProjectedSGD(model, space, lr=0.05, momentum=0.9)
    theirs = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    x, y = torch.randn(16, 6).double(), torch.randint(3, (16,))
    for _ in range(10):
        for each, optimiser in ((model, ours), (other, theirs)):
            optimiser.zero_grad()
            nn.functional.cross_entropy(each(x), y).backward()
        grads = {name: parameter.grad for name, parameter in other.named_parameters() if parameter.grad is not None}
        v_D = space.project(grads)
        for name, parameter in other.named_parameters():
            parameter.grad = (v_D @ space.directions[name]).reshape(parameter.shape)
        ours.step()
        theirs.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-10)


def test_weight_decay_draws_to_zero_within_the_subspace() -> None:
    model = Quadratic()
    space = line(model, 3)
    optimiser = ProjectedSGD(model, space, lr=0.1, momentum=0.0, weight_decay=1.0)
    for _ in range(200):
        optimiser.zero_grad()
        (0 * model()).backward()
        optimiser.step()
    P = space.directions["theta"]
    assert torch.allclose(optimiser.coordinates, -P @ space.start["theta"], atol=1e-6)


def test_a_step_that_finds_no_decrease_leaves_the_network() -> None:
    model = Quadratic()
    optimiser = ProjectedBFGS(model, line(model, 3), backtracks=2, lr=1e6)
    start = model.theta.detach().clone()
    optimiser.step(closure_of(model, optimiser, model))
    assert torch.equal(model.theta, start)
    assert torch.equal(optimiser.inverse, torch.eye(3).double())


@pytest.mark.parametrize("make", OPTIMISERS)
def test_resumed_is_as_never_stopped(make: type[Projected]) -> None:
    def run(model: Quadratic, optimiser: Projected, steps: int) -> Tensor:
        closure = closure_of(model, optimiser, model)
        for _ in range(steps):
            optimiser.step(closure)
        return model.theta.detach().clone()

    models = Quadratic(), Quadratic(), Quadratic()
    space = line(models[0], 5)
    first, second, third = (make(model, space, lr=0.1) for model in models)
    whole = run(models[0], first, 8)
    run(models[1], second, 4)
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    assert torch.equal(run(models[2], third, 4), whole)


def test_schedulers_of_torch_work() -> None:
    model = Quadratic()
    optimiser = ProjectedSGD(model, line(model, 3), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.1)
    model().backward()
    optimiser.step()
    schedule.step()
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.1)


def test_mistakes() -> None:
    model = network()
    space = dldr(model, trained(model), 2)
    with pytest.raises(ValueError, match=r"has no parameter '0.weight'"):
        ProjectedSGD(Quadratic(), space)
    wider = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3))
    with pytest.raises(ValueError, match=r"'0.weight' is \[9, 6\], and \[8, 6\] in the subspace"):
        ProjectedSGD(wider, space)
    with pytest.raises(ValueError, match=r"no directions for '4.bias'"):
        ProjectedSGD(nn.Sequential(*network(), nn.Linear(3, 2)), space)
    with pytest.raises(ValueError, match="momentum is -1"):
        ProjectedSGD(model, space, momentum=-1)
    with pytest.raises(ValueError, match="shrink is 1"):
        ProjectedBFGS(model, space, shrink=1)
    with pytest.raises(ValueError, match=r"call loss.backward"):
        ProjectedSGD(model, space).step()
    with pytest.raises(ValueError, match="not a state of ProjectedBFGS"):
        ProjectedBFGS(model, space).load_state_dict(ProjectedSGD(model, space).state_dict())
    with pytest.raises(ValueError, match="the state has 2 directions, this subspace 3"):
        ProjectedSGD(model, dldr(model, trained(model), 3)).load_state_dict(ProjectedSGD(model, space).state_dict())


def test_a_training_that_diverges() -> None:
    model = network()
    optimiser = ProjectedSGD(model, dldr(model, trained(model), 2))
    (torch.nan * model(torch.randn(4, 6)).sum()).backward()
    with pytest.raises(ValueError, match="the training diverges"):
        optimiser.step()
