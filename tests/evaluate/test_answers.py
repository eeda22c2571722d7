"""Which answers changed, against counting by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankwise.evaluate import Outputs, changes


class Table(nn.Module):
    """Answers sample n with row n of a table."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores[x[:, 0].long()]


def scores_of(answers: list[int], classes: int = 3, sure: float = 4.0) -> torch.Tensor:
    return sure * nn.functional.one_hot(torch.tensor(answers), classes).float()


def test_classes_and_samples_are_those_counted_by_hand() -> None:
    dense, small = Table(scores_of([0, 0, 1, 2, 2, 2])), Table(scores_of([0, 1, 1, 2, 0, 2]))
    small.scores.data[4] *= 3  # surely wrong: the sample that changed most
    inputs = torch.arange(6).float()[:, None]
    labels = torch.tensor([0, 0, 1, 2, 2, 1])
    outputs = Outputs.of(dense, inputs, labels)
    pairs = [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])]
    found = changes(small, dense, pairs, outputs)
    assert (found.total, found.changed) == (6, 2)
    rows = {each.index: (each.answers, each.changed, each.labels, each.right) for each in found.classes}
    assert rows == {0: (2, 1, 2, (2, 1)), 2: (3, 1, 2, (2, 1))}
    assert [(each.index, each.before, each.after, each.label) for each in found.samples] == [(4, 2, 0, 2), (1, 0, 1, 0)]
    assert found.samples[0].inputs.item() == 4.0


def test_without_labels_answers_alone_count() -> None:
    dense, small = Table(scores_of([0, 1])), Table(scores_of([1, 1]))
    inputs = torch.arange(2).float()[:, None]
    found = changes(small, dense, [(inputs, None)], Outputs.of(dense, inputs, classes_dim=1))
    assert [(each.index, each.changed, each.labels) for each in found.classes] == [(0, 1, 0)]
    assert found.samples[0].label is None


def test_values_are_compared_output_by_output() -> None:
    dense, small = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    dense.weight.data.copy_(torch.eye(2))
    small.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.5]]))
    inputs = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    found = changes(small, dense, [(inputs, inputs)], Outputs(kind="values", why="they are"))
    assert [number for number, _ in found.outputs] == [1, 0]
    assert [error for _, error in found.outputs] == pytest.approx([0.5, 0.0])
    assert found.total == 0


def test_answers_of_every_pixel_count() -> None:
    dense, small = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
    dense.weight.data.copy_(torch.eye(3)[..., None, None])
    small.weight.data.copy_(torch.eye(3)[[1, 0, 2]][..., None, None])
    maps = nn.functional.one_hot(torch.tensor([[[0, 1], [2, 2]]]), 3).movedim(-1, 1).float()
    found = changes(small, dense, [(maps, None)], Outputs.of(dense, maps, classes_dim=1))
    assert (found.total, found.changed, found.samples) == (4, 2, ())
