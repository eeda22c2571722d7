"""Kernels that are multilinear in their factors, fitted in a metric by damped least squares; many fits side by side.

`min ||(W - V) Sigma^(1/2)||_F^2` over `V = sum over the bonds of the product of the factors`, written as an equation
of index letters, "ta,cb,abhw->tchw". The problem is not convex, so a fit may have several starts: after some sweeps
the better half of them goes on, until one is left. `descent` has the sweeps.

Problems of one equation and equal sizes, and the starts of each, are one batch.

Letters: G problems, T outputs, D inputs.

Source: Kalle, Rudkiewicz, Ouerfelli, Tamaazousti, 2025, arXiv 2511.04494 (the metric).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .descent import Descent, Effort, Fitted
from .equation import BATCH, Equation, arranged
from .metric import Metric
from .problems import Problems
from .stacked import held_numbers, stacked

# Sweeps between two halvings of the starts.
RACE = 10
# A batch has at most so many numbers in metrics and kernels: 160 MB. Larger problems gain nothing from each other.
TOGETHER = 20_000_000


class Problem(NamedTuple):
    """A kernel T x D, its metric, the factors to start from, each a list, and the squared error to stop at."""

    W_TD: Tensor
    metric: Metric
    starts: Sequence[Sequence[Tensor]]
    enough: float = 0.0


def fit(
    W_TD: Tensor,
    metric: Metric,
    equation: Equation,
    start: Sequence[Tensor],
    effort: Effort | None = None,
    enough: float = 0.0,
) -> Fitted:
    """`fits` of one problem from one start."""
    return fits([Problem(W_TD, metric, [start], enough)], equation, effort)[0]


def fits(problems: Sequence[Problem], equation: Equation, effort: Effort | None = None) -> list[Fitted]:
    """Least squares in all factors, each problem from the best of its starts.

    Args:
        problems: of equal sizes, each with at least one start.
        equation: letters of the factors.
        effort: see `Effort`.

    Returns:
        Of each problem the factors, equal in norm for each bond state; the error never rises from sweep to sweep.

    Example:
        >>> from rankwise.linalg.metric import Identity
        >>> pair = Equation.parse("tr,cr->tc")
        >>> start = [torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [1.0]])]
        >>> (found,) = fits([Problem(torch.eye(2) + 1, Identity(2), [start])], pair)
        >>> round(found.error, 6)
        1.0
    """
    numbers = max(problem.W_TD.numel() + held_numbers(problem.metric) for problem in problems)
    most = max(1, TOGETHER // numbers)
    found = []
    for first in range(0, len(problems), most):
        some = problems[first : first + most]
        owners = [number for number, problem in enumerate(some) for _ in problem.starts]
        factors = [torch.stack(parts).double() for parts in zip(*(s for p in some for s in p.starts), strict=True)]
        kernels, metrics = [some[owner].W_TD for owner in owners], [some[owner].metric for owner in owners]
        enough_G = torch.tensor([some[owner].enough for owner in owners], dtype=torch.float64)
        stack = _stacked(kernels, metrics, equation, factors)
        descent = Descent(stack, factors, enough_G.to(stack.total_G), owners, effort or Effort())
        while descent.is_race():
            descent.sweep(RACE)
            descent.halve()
        descent.sweep(descent.effort.sweeps)
        found += [descent.results[number] for number in range(len(some))]
    return found


def _stacked(
    kernels: Sequence[Tensor], metrics: Sequence[Metric], equation: Equation, factors: Sequence[Tensor]
) -> Problems:
    """The batch; outputs that no factor holds together with the others are inputs in it, see `Equation.split`."""
    if all(kernel is kernels[0] for kernel in kernels):
        kernels = kernels[:1]
    split, sizes = equation.split, equation.sizes(factors)
    W = torch.stack(list(kernels)).double().reshape(-1, *(sizes[letter] for letter in equation.kernel))
    outputs = math.prod(sizes[letter] for letter in split.outputs)
    W_GTD = arranged(W, BATCH + equation.kernel, BATCH + split.kernel).reshape(len(W), outputs, -1)
    return Problems(W_GTD, stacked(metrics), split)
