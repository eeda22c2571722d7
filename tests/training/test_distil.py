"""The loss of distillation against numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.nets import unchanged
from support.training_nets import pair
from torch import nn

from rankwise.training import Distillation

pytestmark = pytest.mark.usefixtures("one_thread")


class Fixed(nn.Module):
    """Gives the same scores for every sample."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores.expand(len(x), -1)


def test_divergence_by_hand() -> None:
    """Two classes of logits T log 3 and 0 are 3/4 and 1/4 after the softening; against 1/2 and 1/2."""
    x, T = torch.zeros(7, 1), 3.0
    loss = Distillation(Fixed(T * math.log(3), 0.0), temperature=T)(x, Fixed(0.0, 0.0)(x))
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss.item() == pytest.approx(T**2 * by_hand, rel=1e-5)


def test_relative_error_by_hand() -> None:
    x = torch.zeros(2, 1)
    loss = Distillation(Fixed(3.0, 4.0), logits=False)(x, Fixed(3.0, 0.0)(x))
    assert loss.item() == pytest.approx(16 / 25)


def test_labels_add_their_cross_entropy() -> None:
    x, labels = torch.zeros(2, 1), torch.tensor([0, 1])
    dense = Fixed(1.0, 2.0)
    distil = Distillation(dense, label_weight=0.25)
    scores = Fixed(0.5, -1.0)(x)
    expected = distil(x, scores) + 0.25 * F.cross_entropy(scores, labels)
    torch.testing.assert_close(distil(x, scores, labels), expected)


def test_the_dense_network_has_no_loss_and_is_left_alone() -> None:
    dense, small, x = pair()
    dense.train()
    distil = Distillation(dense)
    with unchanged(dense):
        assert distil(x, dense.eval()(x)).item() == pytest.approx(0, abs=1e-6)
        dense.train()
        distil(x, small(x)).backward()
    assert all(parameter.grad is None for parameter in dense.parameters())
    assert any(parameter.grad is not None for parameter in small.parameters())


def test_features() -> None:
    """The error of a feature is added; it needs both networks."""
    dense, small, x = pair()
    plain, with_features = Distillation(dense), Distillation(dense, features=["1"], feature_weight=2.0)
    error = (small[:2](x) - dense[:2](x)).square().sum() / dense[:2](x).square().sum()
    torch.testing.assert_close(with_features.of(small, x), plain.of(small, x) + 2 * error)
    with pytest.raises(ValueError, match=r"distil\.of"):
        with_features(x, small(x))


def test_errors_name_the_value() -> None:
    dense, _, x = pair()
    with pytest.raises(ValueError, match="temperature is 0"):
        Distillation(dense, temperature=0)
    with pytest.raises(ValueError, match="no module 'layer9'"):
        Distillation(dense, features=["layer9"])
    with pytest.raises(ValueError, match=r"\[96, 5\], the small one \[96, 7\]"):
        Distillation(dense)(x, torch.zeros(96, 7))
