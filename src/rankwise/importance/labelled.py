"""Data with targets, and losses: what the importance of neurons by the loss needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..running.exclusive import exclusive
from ..running.outputs import Outputs

Labelled = Iterable[tuple[Tensor, Tensor]]
# From outputs and targets to the mean over samples.
Loss = Callable[[Tensor, Tensor], Tensor]


@exclusive
def self_labelled(model: nn.Module, inputs: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Inputs with the dense network's own first answers as labels, for data without labels.

    Raises:
        ValueError: for outputs that are not scores with classes in dimension 1, as losses need them.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> self_labelled(model, [torch.tensor([[1.0, 3.0], [5.0, 2.0]])])[0][1].tolist()
        [1, 0]
    """
    inputs = list(inputs)
    outputs = Outputs.of(model, inputs[0], scores=True)
    if outputs.kind != "scores" or outputs.dim != 1 or outputs.name:
        raise ValueError(f"own labels need scores with classes in dimension 1; the outputs have {outputs}")
    trial = copy.deepcopy(model).eval()
    with torch.no_grad():
        return [(x, trial(x).argmax(1)) for x in inputs]


def mean(total: Tensor, count: int) -> Tensor:
    """A sum over samples, divided by their number; ValueError if that is 0."""
    if count == 0:
        raise ValueError("the data has no samples; pass a list of (inputs, targets), which can be iterated again")
    return total / count
