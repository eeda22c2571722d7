"""The hierarchical group lasso: values, gradients, and the proximal step against a numerical minimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.ordered import hierarchical_shrinkage, lasso, lasso_step_, order_, ordered_layers
from rankwise.ordered.hierarchical_lasso import factors_of, hierarchical_lasso

U0 = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 4)) * [2, 1, 0.6, 0.3])


def objective(P: Tensor, strength: float = 0.35) -> Tensor:
    return 0.5 * (P - U0).square().sum() + strength * hierarchical_lasso(P)


def test_values_by_hand() -> None:
    U = torch.tensor([[3.0, 0.0, 2.0], [0.0, 6.0, 3.0]])
    suffixes = [(9 + 36 + 13) ** 0.5, (36 + 13) ** 0.5, 13**0.5]
    assert float(hierarchical_lasso(U)) == pytest.approx(sum(suffixes))


def test_a_zero_suffix_has_a_finite_gradient() -> None:
    U = torch.tensor([[3.0, 0.0, 0.0], [4.0, 0.0, 0.0]], requires_grad=True)
    hierarchical_lasso(U).backward()
    assert torch.allclose(U.grad, torch.tensor([[0.6, 0.0, 0.0], [0.8, 0.0, 0.0]]))


def test_the_proximal_step_is_the_known_one() -> None:
    P = hierarchical_shrinkage(U0, 0.35)
    assert float(objective(P)) == pytest.approx(2.770525, abs=1e-6)
    assert P.norm(dim=0).tolist() == pytest.approx([4.75969, 1.01132, 0.64941, 0.06713], abs=1e-5)


def test_the_proximal_step_is_a_numerical_minimum() -> None:
    P = U0.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([P], max_iter=400, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = objective(P)
        value.backward()
        return value

    optimiser.step(loss)
    assert torch.allclose(hierarchical_shrinkage(U0, 0.35), P, atol=1e-5)


def test_no_strength_and_a_large_one() -> None:
    assert torch.equal(hierarchical_shrinkage(U0, 0.0), U0)
    assert torch.equal(hierarchical_shrinkage(U0, 1e3), torch.zeros_like(U0))
    assert torch.equal(hierarchical_shrinkage(torch.zeros(2, 3), 0.1), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="the strength of a proximal step is -1; it must be 0 or more"):
        hierarchical_shrinkage(U0, -1)


def test_layers_are_shrunk_over_all_groups_together() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8 * 9, 6))
    order_(model, rw.find(model, torch.randn(1, 4, 5, 5)))
    before = [factor.detach().clone() for layer in ordered_layers(model).values() for factor in factors_of(layer)]
    assert torch.allclose(lasso(model), sum(map(hierarchical_lasso, before)))
    assert before[0].shape == (8, 4)
    assert before[1].shape == (2 * 2 * 9, 4)
    lasso_step_(model, 0.05)
    after = [factor for layer in ordered_layers(model).values() for factor in factors_of(layer)]
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(hierarchical_shrinkage(one, 0.05), other, atol=1e-6)
