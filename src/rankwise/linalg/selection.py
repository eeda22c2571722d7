"""Select rows and channels of a weight, and fit nested blocks of low rank to it.

Letters: T rows, C channels, Q taps, D = C Q inputs, R rank of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import sparse_low_rank as nested
from .metric import Metric
from .reduced_rank import balance, spectrum
from .sorting import Sorted, descending, shares
from .sparse_low_rank import Level, Nested

# How often neurons are selected anew from what the first level leaves.
SELECTIONS = 4


class Selected(NamedTuple):
    """A fit: orders of rows and channels, factors of the sorted weight, the fitted weight, and its squared error."""

    rows_T: Tensor
    channels_C: Tensor
    factors: Nested
    weight_TD: Tensor
    error: float


def fit_selected(
    W_TD: Tensor,
    metric: Metric,
    levels: Sequence[Level],
    scores: tuple[Tensor, Tensor] | None = None,
    refit: bool = True,
) -> Selected:
    """Select rows and channels for nested blocks, and fit these: `min ||(W - sum_l E_l U_l V_l F_l^T) Sigma^(1/2)||_F`.

    Without scores the first selection goes by what each neuron contributes to the output, the second by what it
    contributes beyond the first level, and further ones by what the first level of the best fit leaves.

    Args:
        W_TD: weight, float64.
        metric: Sigma, D x D.
        levels: from the largest to the smallest, columns counted in channels; the first holds all.
        scores: of the T rows and the C channels; if given, they alone select.
        refit: solve for the factors; else take the truncated SVD with zeros put in.

    Returns:
        The best fit found, with its error in the metric.

    Example:
        >>> from rankwise.linalg.metric import Identity
        >>> W = torch.ones(4, 3, dtype=torch.float64)
        >>> W[1, 2] = 9
        >>> found = fit_selected(W, Identity(3), [Level(1, 4, 3), Level(1, 1, 1)])
        >>> found.rows_T[0].item(), found.channels_C[0].item(), found.error < 1e-18
        (1, 2, True)
    """
    if scores is not None:
        return _fit(W_TD, metric, levels, (descending(scores[0]), descending(scores[1])), refit)
    taps = W_TD.shape[1] // levels[0].columns
    rows_T, channels_C = shares(W_TD, metric, taps)
    best = _fit(W_TD, metric, levels, (descending(rows_T), descending(channels_C)), refit)
    if not refit or all(level[1:] == levels[0][1:] for level in levels):
        return best
    seen = {_sets((best.rows_T, best.channels_C), levels)}
    U_TR = spectrum(W_TD, metric)[1][:, : levels[0].rank]
    first_TD = U_TR @ (U_TR.mT @ W_TD)
    for _ in range(SELECTIONS):
        orders = _block(W_TD - first_TD, metric, levels)
        if _sets(orders, levels) not in seen:
            seen.add(_sets(orders, levels))
            other = _fit(W_TD, metric, levels, orders, refit)
            best = min(best, other, key=lambda found: found.error)
        first_TD = _first_level(best, levels[0].columns)
    return best


def _fit(W_TD: Tensor, metric: Metric, levels: Sequence[Level], orders: tuple[Tensor, Tensor], refit: bool) -> Selected:
    """The fit of one selection."""
    rows_T, channels_C = orders
    taps = W_TD.shape[1] // len(channels_C)
    weight = Sorted(W_TD, metric, rows_T, channels_C)
    wide = [level._replace(columns=level.columns * taps) for level in levels]
    if refit:
        holding = [level._replace(rank=min(level)) for level in wide]  # no more rank than its block can hold
        factors = nested.fit(weight.Z_TD, holding)[0]
    else:
        factors = nested.shortened(nested.masked(weight.Z_TD, wide))
    pairs = [balance(U, weight.plain(V)) for U, V in zip(factors.U, factors.V, strict=True)]
    factors = Nested([U for U, _ in pairs], [V for _, V in pairs])
    dense_TD = weight.unsorted(factors.dense(W_TD))
    return Selected(rows_T, channels_C, factors, dense_TD, metric.energy(W_TD - dense_TD))


def _sets(orders: tuple[Tensor, Tensor], levels: Sequence[Level]) -> tuple[tuple[int, ...], ...]:
    """The neurons that each level holds."""
    held = [order[:count] for level in levels for order, count in zip(orders, level[1:], strict=True)]
    return tuple(tuple(neurons.sort().values.tolist()) for neurons in held)


def _first_level(fitted: Selected, channels: int) -> Tensor:
    """The first level of a fit, with rows and columns in their own order."""
    first_TD = fitted.factors.U[0] @ fitted.factors.V[0]
    first_TCQ = first_TD.unflatten(1, (channels, -1))
    return first_TCQ[fitted.rows_T.argsort()][:, fitted.channels_C.argsort()].flatten(1)


def _block(rest_TD: Tensor, metric: Metric, levels: Sequence[Level]) -> tuple[Tensor, Tensor]:
    """Orders of rows and channels that give a block of large energy.

    Rows are sorted by what they contribute on the important channels, then channels by what they contribute on the
    important rows, a few times for each level.
    """
    taps = rest_TD.shape[1] // levels[0].columns
    rows_T, channels_C = map(descending, shares(rest_TD, metric, taps))
    for _, rows, channels in levels[1:]:
        for _ in range(SELECTIONS):
            kept_C = torch.zeros_like(channels_C, dtype=rest_TD.dtype)
            kept_C[channels_C[:channels]] = 1
            rows_T = descending(shares(rest_TD * kept_C.repeat_interleave(taps), metric, taps)[0])
            inside_T = torch.zeros_like(rows_T, dtype=rest_TD.dtype)
            inside_T[rows_T[:rows]] = 1
            channels_C = descending(shares(rest_TD * inside_T[:, None], metric, taps)[1])
    return rows_T, channels_C
