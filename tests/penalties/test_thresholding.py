"""Singular soft-thresholding: the proximal map of the nuclear norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.penalties import SoftThreshold, soft_threshold, soft_threshold_, spectral
from rankwise.training import Loop, LoopOptions, Samples

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_is_the_proximal_map_of_the_nuclear_norm() -> None:
    W = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    threshold = 0.8
    # An independent minimiser: the nuclear norm is the least of 1/2 (||A||^2 + ||B||^2) over A B = V.
    A, B = (each.clone().requires_grad_() for each in (W, torch.eye(3, dtype=torch.float64)))
    optimiser = torch.optim.LBFGS([A, B], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        optimiser.zero_grad()
        loss = 0.5 * (A @ B - W).square().sum() + threshold / 2 * (A.square().sum() + B.square().sum())
        loss.backward()
        return loss

    optimiser.step(objective)
    V = soft_threshold(W, threshold)
    assert torch.allclose(A @ B, V, atol=1e-4)
    reached = 0.5 * (V - W).square().sum() + threshold * spectral(V, "nuclear")
    assert float(reached) == pytest.approx(objective().item(), abs=1e-8)


def test_edges() -> None:
    W = torch.randn(4, 6)
    assert torch.equal(soft_threshold(W, 0.0), W.double())
    assert torch.equal(soft_threshold(W, 1e3), torch.zeros(4, 6, dtype=torch.float64))
    s = torch.linalg.svdvals(W.double())
    left = torch.linalg.svdvals(soft_threshold(W, float(s[2])))
    assert torch.allclose(left, (s - s[2]).clamp_min(0), atol=1e-7)


def test_groups_are_thresholded_one_by_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))
    W = model[0].weight.detach().clone().flatten(1)
    soft_threshold_(model, rw.find(model, torch.randn(1, 4, 5, 5)), 0.3)
    wanted = torch.cat([soft_threshold(W[:4], 0.3), soft_threshold(W[4:], 0.3)])
    assert torch.allclose(model[0].weight.flatten(1).double(), wanted, atol=1e-6)


def trained(weight: float) -> tuple[nn.Module, Loop]:
    """A linear network whose target has rank 3."""
    torch.manual_seed(0)
    x = torch.randn(400, 12)
    target = torch.randn(12, 3) @ torch.randn(3, 12) / 3
    model = nn.Sequential(nn.Linear(12, 12))
    told = SoftThreshold(rw.find(model, x[:1]), weight, every=2)
    options = LoopOptions(epochs=12, batch=40, rate=0.05, optimiser="sgd", clip=1e6)
    samples = Samples.of(x, labels=x @ target)
    loss = lambda x, y: (model(x) - y).square().sum(1).mean()  # noqa: E731
    return model, Loop(model, loss, samples, options, techniques=[told])


def test_the_plan_has_the_ranks_that_are_left() -> None:
    model, loop = trained(0.3)
    loop.run()
    assert loop.plan is not None
    assert loop.plan["0"].ranks == (3,)
    small = rw.factorise(model, loop.plan, rw.find(model, torch.randn(1, 12)))
    x = torch.randn(5, 12)
    assert torch.allclose(small(x), model(x), atol=1e-5)


def test_a_weight_that_leaves_nothing_is_told() -> None:
    model, loop = trained(1e3)
    with torch.no_grad():
        model[0].weight.zero_()
    with pytest.raises(ValueError, match="left nothing of site '0'; choose a smaller weight than 1000"):
        loop.run()
