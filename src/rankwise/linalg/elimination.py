"""Backward elimination of inputs: leave out the inputs of a matrix that others replace best.

Letters: T outputs, D inputs, K kept inputs, S inputs that are left out together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .metric import Metric
from .symmetric import cholesky

# Of the mean diagonal, added to it: inputs that repeat others leave first instead of making the matrix singular.
DAMPING = 1e-4


class Elimination(NamedTuple):
    """The path from all inputs to none.

    Attributes:
        order_D: the inputs, the first to leave first.
        errors: squared error with the last K inputs of the order, for the K that were asked for, ascending.
    """

    order_D: Tensor
    errors: dict[int, float]


def eliminate(
    W_TD: Tensor,
    metric: Metric,
    step: int = 1,
    G_TT: Tensor | None = None,
    *,
    order_D: Tensor | None = None,
    parts_UP: Tensor | None = None,
) -> Elimination:
    """Leave out the inputs one after the other that cost the least, the others refitted each time.

    `min over U, K of ||(W - U E_K) Sigma^(1/2)||^2` greedily, `E_K` the rows K of the identity. With `P = Sigma^-1` of
    the inputs that are left and the refitted `W`, leaving out S costs `tr(W_S P_SS^-1 W_S^T)`; then
    `W <- W - W_S P_SS^-1 P_S` and `P <- P - P_S^T P_SS^-1 P_S`.

    Args:
        W_TD: the matrix, float64.
        metric: of the inputs.
        step: so many leave at once, those that cost the least one by one; the errors are for what is left after each
            time, so for multiples of it if D is one.
        G_TT: weighs the outputs in the errors that are returned, but not in what leaves.
        order_D: the inputs, or units, in the order in which they leave instead, the first to leave first.
        parts_UP: inputs that leave together, a row for each such unit; D rows of one input by default. Then order and
            errors are in units.

    Example:
        >>> from rankwise.linalg.metric import Identity
        >>> round(eliminate(torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64), Identity(3)).errors[2], 3)
        1.0
    """
    W, device = W_TD.clone(), W_TD.device
    factor = cholesky(metric.dense(), DAMPING)
    P = torch.cholesky_inverse(factor)
    units_UP = torch.arange(W_TD.shape[1], device=device)[:, None] if parts_UP is None else parts_UP
    units, together = units_UP.shape
    # The inputs of a unit lie side by side, those of units that are left in the order of `alive`.
    W, P = W[:, units_UP.flatten()], P[units_UP.flatten()][:, units_UP.flatten()]
    alive = torch.arange(units, device=device)
    order: list[Tensor] = []
    errors, error = {units: 0.0}, 0.0
    while len(alive):
        count = len(alive) % step or step
        if order_D is None:
            leaving = _costs(W, P, together).topk(count, largest=False).indices
        else:
            gone, places_D = units - len(alive), torch.empty_like(order_D)
            places_D[alive] = torch.arange(len(alive), device=device)
            leaving = places_D[order_D[gone : gone + count]]
        out_S = (together * leaving[:, None] + torch.arange(together, device=device)).flatten()
        left = torch.ones(W.shape[1], dtype=torch.bool, device=device)
        left[out_S] = False
        order.append(alive[leaving])
        solved_SD = torch.linalg.solve(P[out_S][:, out_S], P[out_S])
        gone_TS = W[:, out_S]
        left_TS = gone_TS @ torch.linalg.inv(P[out_S][:, out_S])
        error += float((left_TS * (gone_TS if G_TT is None else G_TT @ gone_TS)).sum())
        W = (W - gone_TS @ solved_SD)[:, left]
        P = (P - P[:, out_S] @ solved_SD)[left][:, left]
        alive = alive[left[::together]]
        errors[len(alive)] = error
    return Elimination(torch.cat(order), dict(sorted(errors.items())))


def leverages(metric: Metric) -> Tensor:
    """`(C (C + lambda I)^-1)_ii`: how far each input stands out from the others, with `C` the moment of the inputs; D.

    The ridge `lambda` is the mean of the diagonal of `C`: with a much smaller one all inputs of a regular `C` have
    leverages near 1.

    Example:
        >>> from rankwise.linalg.metric import Dense
        >>> leverages(Dense(torch.diag(torch.tensor([1.0, 4.0])))).round(decimals=4).tolist()
        [0.2857, 0.6154]

    Source: Alaoui, Mahoney, "Fast Randomized Kernel Ridge Regression with Statistical Guarantees", 2015, arXiv
    1411.0306; for hidden units Lin et al., "MoDeGPT", 2024, arXiv 2408.09632.
    """
    sigma_DD = metric.dense()
    factor = cholesky(sigma_DD, 1.0)
    return torch.cholesky_solve(sigma_DD, factor).diagonal()


def _costs(W_TD: Tensor, P_DD: Tensor, together: int) -> Tensor:
    """`tr(W_S P_SS^-1 W_S^T)` of each unit S of so many inputs side by side."""
    if together == 1:
        return W_TD.square().sum(0) / P_DD.diagonal()
    units = W_TD.shape[1] // together
    each = torch.arange(units, device=W_TD.device)
    P_UPP = P_DD.reshape(units, together, units, together)[each, :, each]
    W_UPT = W_TD.mT.reshape(units, together, -1)
    return (torch.linalg.solve(P_UPP, W_UPT) * W_UPT).sum((1, 2))


def refit(W_TD: Tensor, metric: Metric, kept_K: Tensor) -> Tensor:
    """`argmin over U of ||(W - U E_K) Sigma^(1/2)||`, T x K: `U = W Sigma_:K Sigma_KK^-1`.

    Example:
        >>> from rankwise.linalg.metric import Dense
        >>> same = Dense(torch.ones(2, 2))  # two equal inputs
        >>> refit(torch.tensor([[3.0, 1.0]], dtype=torch.float64), same, torch.tensor([0])).round(decimals=3)
        tensor([[4.]], dtype=torch.float64)
    """
    sigma_DD = metric.dense()
    factor = cholesky(sigma_DD[kept_K][:, kept_K], DAMPING)
    # The damping pulls towards the matrix itself, so that with all inputs nothing changes.
    left_TD = W_TD.clone()
    left_TD[:, kept_K] = 0
    return W_TD[:, kept_K] + torch.cholesky_solve((left_TD @ sigma_DD[:, kept_K]).mT, factor).mT
