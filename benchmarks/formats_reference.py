"""Tucker-2 in the input metric as in its paper: plain start, one block after the other, many sweeps.

`W[t, c, q] = sum A[t, r] G[r, s, q] B[c, s]`. A sweep solves for `B`, then `A`, then `G`, each a linear least squares
problem in the metric.

Letters: T outputs, C channels, Q taps, D = C * Q, R output rank, S channel rank.

Source: Kalle, Rudkiewicz, Ouerfelli, Tamaazousti, 2025, arXiv 2511.04494 (re-implemented from its equations).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Up to this many unknowns the normal equations of `B` are solved directly, above by MINRES.
DIRECT = 1024


def tucker2(
    W_TCQ: Tensor, sigma_DD: Tensor, output_rank: int, channel_rank: int, sweeps: int = 100
) -> tuple[float, list[float]]:
    """Alternating least squares from the truncated higher-order singular value decomposition.

    Returns:
        Relative squared error in the metric at the end, and after every sweep.
    """
    T, C, Q = W_TCQ.shape
    W_TD = W_TCQ.reshape(T, -1)
    WS_TD = W_TD @ sigma_DD
    total = float((WS_TD * W_TD).sum())
    A_TR = torch.linalg.svd(W_TD, full_matrices=False)[0][:, :output_rank]
    B_CS = torch.linalg.svd(W_TCQ.movedim(1, 0).reshape(C, -1), full_matrices=False)[0][:, :channel_rank]
    G_RSQ = _core(WS_TD, sigma_DD, A_TR, B_CS, Q)
    history = []
    for _ in range(sweeps):
        B_CS = _channels(WS_TD, sigma_DD, A_TR, G_RSQ, B_CS)
        M_RD = torch.einsum("rsq,cs->rcq", G_RSQ, B_CS).flatten(1)
        A_TR = torch.linalg.lstsq(M_RD @ sigma_DD @ M_RD.mT, M_RD @ WS_TD.mT, driver="gelsd").solution.mT
        G_RSQ = _core(WS_TD, sigma_DD, A_TR, B_CS, Q)
        missed_TD = W_TD - torch.einsum("tr,rsq,cs->tcq", A_TR, G_RSQ, B_CS).flatten(1)
        history.append(float(((missed_TD @ sigma_DD) * missed_TD).sum()) / total)
    return history[-1], history


def _core(WS_TD: Tensor, sigma_DD: Tensor, A_TR: Tensor, B_CS: Tensor, Q: int) -> Tensor:
    """The best core for given bases: normal equations on the projected inputs, then the pseudo-inverse of `A`."""
    S = B_CS.shape[1]
    right_TP = torch.einsum("tcq,cs->tsq", WS_TD.unflatten(1, (-1, Q)), B_CS).flatten(1)
    half_DP = torch.einsum("dcq,cs->dsq", sigma_DD.unflatten(1, (-1, Q)), B_CS).flatten(1)
    sigma_PP = torch.einsum("cqp,cs->sqp", half_DP.unflatten(0, (-1, Q)), B_CS).flatten(0, 1)
    Z_TP = torch.linalg.solve(sigma_PP, right_TP.mT).mT
    return (torch.linalg.pinv(A_TR) @ Z_TP).reshape(-1, S, Q)


def _channels(WS_TD: Tensor, sigma_DD: Tensor, A_TR: Tensor, G_RSQ: Tensor, B_CS: Tensor) -> Tensor:
    """The best `B` for a given core and `A`: `C S` unknowns, all coupled by the metric."""
    C, S = B_CS.shape
    Q = G_RSQ.shape[2]
    gram_RR = A_TR.mT @ A_TR
    right_CS = torch.einsum("rcq,rsq->cs", (A_TR.mT @ WS_TD).unflatten(1, (C, Q)), G_RSQ)
    if C * S <= DIRECT:
        gamma = torch.einsum("rsq,rx,xup->squp", G_RSQ, gram_RR, G_RSQ)
        H = torch.einsum("cqdp,squp->csdu", sigma_DD.reshape(C, Q, C, Q), gamma).reshape(C * S, C * S)
        H.diagonal().add_(1e-14 * H.diagonal().mean())
        return torch.linalg.solve(H, right_CS.reshape(-1)).reshape(C, S)

    def apply(x: Tensor) -> Tensor:
        V_RD = gram_RR @ torch.einsum("rsq,cs->rcq", G_RSQ, x.reshape(C, S)).flatten(1)
        return torch.einsum("rcq,rsq->cs", (V_RD @ sigma_DD).unflatten(1, (C, Q)), G_RSQ).reshape(-1)

    # From the present basis: the solution is the same, and reached in fewer steps.
    start = B_CS.reshape(-1)
    return (start + minres(apply, right_CS.reshape(-1) - apply(start), 1e-8, 500)).reshape(C, S)


def minres(apply: Callable[[Tensor], Tensor], right: Tensor, tolerance: float, most: int) -> Tensor:
    """The vector with the smallest residual of `H x = b`, step by step, for symmetric `H`.

    Source: Paige, Saunders, "Solution of Sparse Indefinite Systems of Linear Equations", 1975.
    """
    beta = torch.linalg.vector_norm(right)
    x, size = torch.zeros_like(right), float(beta)
    if not size:
        return x
    v_before, v = torch.zeros_like(right), right / beta
    d_before, d = torch.zeros_like(right), torch.zeros_like(right)
    beta = torch.zeros_like(beta)
    cosine, cosine_before = torch.ones_like(beta), torch.ones_like(beta)
    sine, sine_before = torch.zeros_like(beta), torch.zeros_like(beta)
    residual = size
    for _ in range(most):
        w = apply(v)
        alpha = v @ w
        w = w - alpha * v - beta * v_before
        beta_next = torch.linalg.vector_norm(w)
        # The new column of the tridiagonal matrix, turned by the two rotations before it and one of its own.
        epsilon = sine_before * beta
        turned = cosine_before * beta
        delta = cosine * turned + sine * alpha
        gamma = cosine * alpha - sine * turned
        rho = torch.hypot(gamma, beta_next)
        cosine_before, sine_before = cosine, sine
        cosine, sine = gamma / rho, beta_next / rho
        d_before, d = d, (v - delta * d - epsilon * d_before) / rho
        x = x + cosine * residual * d
        residual = -float(sine) * residual
        if abs(residual) <= tolerance * size or float(beta_next) <= 1e-14 * float(rho):
            break
        v_before, v, beta = v, w / beta_next, beta_next
    return x
