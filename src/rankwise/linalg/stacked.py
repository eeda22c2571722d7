"""Several metrics of one kind and size as one, with the problems of a batch along the first dimension.

Letters: G problems, D input dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from .metric import Dense, Metric


def stacked(metrics: Sequence[Metric]) -> Metric:
    """The metric of a batch: its tensors are G x their own shape, or 1 x their own shape if all are the same.

    `times` multiplies G x T x D by each problem's own Sigma, and so do `inner`, `dense` and `marginal`. Metrics of
    different kinds are stacked as matrices.

    Example:
        >>> import torch
        >>> from rankwise.linalg.metric import Dense
        >>> both = stacked([Dense(torch.eye(2)), Dense(3 * torch.eye(2))])
        >>> both.times(torch.ones(2, 1, 2).double()).tolist()
        [[[1.0, 1.0]], [[3.0, 3.0]]]
    """
    metrics = [metric.concrete() for metric in metrics]
    first = metrics[0]
    if all(metric is first for metric in metrics):
        metrics = [first]
    elif any(type(metric) is not type(first) for metric in metrics):
        return stacked([Dense(metric.dense()) for metric in metrics])
    result = copy.copy(first)
    for name, value in vars(first).items():
        values = [vars(metric)[name] for metric in metrics]
        if isinstance(value, Tensor):
            setattr(result, name, _padded(values))
        elif isinstance(value, float):
            setattr(result, name, torch.tensor(values, dtype=torch.float64, device=first.device)[:, None, None])
    return result


def chosen(metric: Metric, places: Tensor) -> Metric:
    """Some problems of a stacked metric."""
    result = copy.copy(metric)
    for name, value in vars(metric).items():
        if isinstance(value, Tensor) and len(value) > 1:
            setattr(result, name, value[places])
    return result


def _padded(values: Sequence[Tensor]) -> Tensor:
    """Stacked, with zeros where a sampled metric has fewer rows: they add nothing to Sigma."""
    rows, padded = max(len(value) for value in values), []
    for value in values:
        missing = value.new_zeros(rows - len(value), *value.shape[1:])
        padded.append(torch.cat([value, missing]) if len(missing) else value)
    return torch.stack(padded)


def held_numbers(metric: Metric) -> int:
    """Numbers that a metric holds."""
    return sum(value.numel() for value in vars(metric).values() if isinstance(value, Tensor))
