"""Compare two networks on inputs without labels."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from torch import nn

from ..running.batches import made
from ..running.outputs import Outputs
from ..running.verbs import verb
from .measures import compared, measure
from .tallies import NO_SAMPLES


@verb
def agreement(a: nn.Module, b: nn.Module, batches: Iterable[Any], *, classes_dim: int | None = None) -> float:
    """Percentage of samples, pixels or tokens for which two classifiers prefer the same class.

    Args:
        a, b: classifiers for the same inputs, as for `accuracy`.
        batches: inputs without labels.
        classes_dim: dimension of the classes, if it cannot be told (see `Outputs`).

    Raises:
        ValueError: naming the batch with scores that are not finite or differ in shape; for outputs that are not scores
            of classes, or `[N, A, B]` if the dimension of the classes is not known.

    Example:
        >>> import torch
        >>> same = torch.nn.Linear(4, 3)
        >>> agreement(same, same, [torch.randn(8, 4)])
        100.0
    """
    return _compare("agreement", a, b, batches, classes_dim)


@verb
def divergence(a: nn.Module, b: nn.Module, batches: Iterable[Any], *, classes_dim: int | None = None) -> float:
    """Mean Kullback-Leibler divergence of two classifiers' answers, in nats: `E sum_k p_a(k) log(p_a(k) / p_b(k))`.

    Args:
        a: classifier whose answers count as right.
        b: another one for the same inputs.
        batches, classes_dim: as for `agreement`, with the same errors.

    Example:
        >>> import torch
        >>> divergence(nn.Identity(), nn.Identity(), [torch.eye(3)])
        0.0
    """
    return _compare("divergence", a, b, batches, classes_dim)


@verb
def relative_error(dense: nn.Module, small: nn.Module, batches: Iterable[Any]) -> float:
    """Distance between the outputs of two networks, of any kind: `||small - dense|| / ||dense||`.

    Args:
        dense: network whose outputs count as right.
        small: another one for the same inputs.
        batches: inputs without labels.

    Returns:
        At least 0; for several outputs the largest. For an output of integers, the share that differs.

    Raises:
        ValueError: naming the batch with outputs that are not finite, or differ in number or shape.

    Example:
        >>> import torch
        >>> half = nn.Linear(1, 1, bias=False)
        >>> _ = half.weight.data.fill_(0.5)
        >>> relative_error(nn.Identity(), half, [torch.ones(3, 1)])
        0.5
    """
    return _compare("relative_error", dense, small, batches)


@verb
def cosine(dense: nn.Module, small: nn.Module, batches: Iterable[Any]) -> float:
    """Mean cosine, -1 to 1, between the embeddings of two networks (last dimension); over all vectors of all outputs.

    Args are those of `relative_error`, with the same errors.

    Example:
        >>> import torch
        >>> cosine(nn.Identity(), nn.Identity(), [torch.eye(3)])
        1.0
    """
    return _compare("cosine", dense, small, batches)


def _compare(
    name: str, dense: nn.Module, small: nn.Module, batches: Iterable[Any], classes_dim: int | None = None
) -> float:
    walk = made(batches)
    first = next(walk, None)
    if first is None:
        raise ValueError(NO_SAMPLES)
    outputs = Outputs.of(dense, first, classes_dim=classes_dim, scores=name in ("agreement", "divergence"))
    chosen = measure(name, outputs)
    return compared(small, dense, chain([first], walk), [chosen])[chosen.key]
