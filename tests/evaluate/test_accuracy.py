"""Accuracy and agreement of classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from rankwise.evaluate import accuracy, agreement

SCORES = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.1, 0.2, 0.7]])
LABELS = torch.tensor([1, 1, 0, 2])


def test_top_k() -> None:
    assert accuracy(nn.Identity(), [(SCORES, LABELS)], k=(1, 2, 3)) == {"top1": 50.0, "top2": 75.0, "top3": 100.0}


def test_batches_of_different_sizes_count_by_samples() -> None:
    batches = [(SCORES[:1], LABELS[:1]), (SCORES[1:], LABELS[1:])]
    assert accuracy(nn.Identity(), batches, k=(1,)) == {"top1": 50.0}


def test_fewer_classes_than_k() -> None:
    assert accuracy(nn.Identity(), [(SCORES, LABELS)]) == {"top1": 50.0, "top5": 100.0}


def test_a_score_for_every_token() -> None:
    assert accuracy(nn.Identity(), [(SCORES.reshape(2, 2, 3), LABELS.reshape(2, 2))], k=(1,)) == {"top1": 50.0}


class Output(NamedTuple):
    logits: Tensor


@pytest.mark.parametrize("wrap", [lambda logits: {"logits": logits}, Output])
def test_outputs_with_logits(wrap: Any) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wrap(x)

    assert accuracy(Model(), [(SCORES, LABELS)], k=(1,)) == {"top1": 50.0}


def test_the_model_is_evaluated_and_handed_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accuracy(model, [(SCORES, LABELS)])
    agreement(model, model, [SCORES])
    assert model[0].training
    assert not model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "batches, message",
    [
        ([], "there are no samples"),
        ([SCORES], r"batch 0 is not a pair \(inputs, labels\)"),
        ([(SCORES, LABELS), (SCORES, LABELS[:2])], r"batch 1: labels are torch.int64 of shape \[2\], scores \[4, 3\]"),
        ([(SCORES, LABELS.float())], "batch 0: labels are torch.float32"),
        ([(SCORES, LABELS + 1)], "labels run from 1 to 3, but the model has classes 0 to 2"),
        ([(SCORES / 0, LABELS)], "batch 0: Identity gave scores that are not finite"),
        ([(SCORES[0], LABELS[0])], r"gave torch.float32 of shape \[3\]; scores of shape \[samples, classes\]"),
    ],
)
def test_what_cannot_be_scored(batches: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy(nn.Identity(), batches)


@pytest.mark.parametrize("k", [(), (0,), (1, -5)])
def test_k_must_be_positive(k: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"k is .*; it must be positive numbers"):
        accuracy(nn.Identity(), [(SCORES, LABELS)], k=k)


def test_agreement_of_a_model_with_others() -> None:
    negative = nn.Linear(3, 3, bias=False)
    nn.init.eye_(negative.weight).data.neg_()
    assert agreement(nn.Identity(), nn.Identity(), [SCORES, SCORES[:1]]) == 100.0
    assert agreement(nn.Identity(), negative, [SCORES]) == 0.0
    shifted = nn.Linear(3, 3)
    nn.init.eye_(shifted.weight)
    shifted.bias.data = torch.tensor([0.25, 0.0, 0.0])
    assert agreement(nn.Identity(), shifted, [SCORES]) == 100.0


def test_agreement_takes_a_generator_once() -> None:
    def batches() -> Iterator[Tensor]:
        yield SCORES
        yield SCORES[:2]

    assert agreement(nn.Identity(), nn.Softmax(-1), batches()) == 100.0


def test_agreement_needs_the_same_classes() -> None:
    with pytest.raises(ValueError, match=r"one model gives scores of shape \[4, 3\], the other \[4, 2\]"):
        agreement(nn.Identity(), nn.Linear(3, 2), [SCORES])
