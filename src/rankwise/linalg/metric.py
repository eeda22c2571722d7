"""The metric of a fit: `||(W - V) Sigma^(1/2)||_F^2` for a second moment that is dense, sampled or the identity.

A fit never needs a root or an inverse of Sigma, only products with it; each class answers them in the form it holds.
The input dimension D is read as C channels x Q taps (kernel positions), row-major, as `torch.nn.functional.unfold`.

Letters: D input dimension = C * Q, T output rows of a weight, N sampled rows, R rank.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from .kept import Place
from .symmetric import cholesky, product, symmetric_part

# Coordinates in one block of a sampled metric's projection.
PROJECTED = 1024


class Metric(ABC):
    """A positive semidefinite D x D matrix Sigma, in float64.

    Laws: `times(M) == M @ dense()`; `energy(M) == trace(M @ dense() @ M.T)`; `inner(M) == M @ dense() @ M.T`;
    `marginal` is a mean of diagonal blocks of `dense()`.
    """

    dim: int
    device: torch.device
    place: Place | None = None  # where a result in this metric is kept for later
    last: object = None  # the last such result

    @abstractmethod
    def times(self, M_TD: Tensor) -> Tensor:
        """`M Sigma`, T x D."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Sigma itself, D x D."""

    @abstractmethod
    def marginal(self, sizes: Sequence[int], held: Sequence[int]) -> Tensor:
        """Moment of some modes of the input, K x K, averaged over all other modes.

        Args:
            sizes: of the modes that the D inputs are read as, row-major.
            held: numbers of the modes to keep, ascending; K is the product of their sizes.
        """

    @abstractmethod
    def fold(self, B_CR: Tensor, taps: int) -> Metric:
        """The metric of inputs projected on `B` per tap: `(B kron I)^T Sigma (B kron I)`, (R Q) x (R Q)."""

    @abstractmethod
    def nested_projection(self, target_TD: Tensor) -> Tensor:
        """`Y` (K x T): for every d, a regression of the target on the first d coordinates explains `Y[:d].T @ Y[:d]`.

        The sum over all rows is `target Sigma target^T`.
        """

    def inner(self, M_TD: Tensor) -> Tensor:
        """`M Sigma M^T`, T x T."""
        return product(self.times(M_TD), M_TD)

    def spread(self, B_CR: Tensor, M_TD: Tensor, taps: int) -> Tensor:
        """`M Sigma (B kron I)`, T x (R Q)."""
        return _channel_fold(self.times(M_TD), B_CR, taps)

    def energy(self, M_TD: Tensor) -> float:
        """`trace(M Sigma M^T)`."""
        return float((self.times(M_TD) * M_TD).sum())

    def concrete(self) -> Metric:
        """The metric itself, where this one is only made when it is needed."""
        return self

    def to(self, dtype: torch.dtype) -> Metric:
        """The same metric in another precision, for steps that are corrected later."""
        result = copy.copy(self)
        vars(result).update({name: value.to(dtype) for name, value in vars(self).items() if isinstance(value, Tensor)})
        return result


def _eye(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _channel_fold(M_TD: Tensor, B_CR: Tensor, taps: int) -> Tensor:
    """`M (B kron I)`: T x (R Q)."""
    M_TCQ = M_TD.reshape(len(M_TD), -1, taps)
    return torch.einsum("tcq,cr->trq", M_TCQ, B_CR).reshape(len(M_TD), -1)


class Dense(Metric):
    """Sigma held as a matrix, damped by `damping` times its mean diagonal.

    Args:
        sigma_DD: symmetric positive semidefinite.
        damping: share of the weight metric that is mixed in; 0.01 is one per cent.
    """

    def __init__(self, sigma_DD: Tensor, damping: float = 0.0) -> None:
        sigma_DD = symmetric_part(sigma_DD.double())
        if damping:
            sigma_DD.diagonal().add_(damping * sigma_DD.diagonal().mean())
        self.sigma_DD = sigma_DD
        self.dim = len(sigma_DD)
        self.device = sigma_DD.device

    def times(self, M_TD: Tensor) -> Tensor:
        return M_TD @ self.sigma_DD

    def dense(self) -> Tensor:
        return self.sigma_DD

    def marginal(self, sizes: Sequence[int], held: Sequence[int]) -> Tensor:
        K = math.prod(sizes[mode] for mode in held)
        left = "abcdefgh"[: len(sizes)]
        right = "".join(letter.upper() if mode in held else letter for mode, letter in enumerate(left))
        kept = "".join(left[mode] for mode in held)
        sigma = self.sigma_DD.reshape(*self.sigma_DD.shape[:-2], *sizes, *sizes)
        blocks = torch.einsum(f"...{left}{right}->...{kept}{kept.upper()}", sigma)
        return blocks.reshape(*self.sigma_DD.shape[:-2], K, K) * (K / self.dim)

    def fold(self, B_CR: Tensor, taps: int) -> Dense:
        half = _channel_fold(self.sigma_DD, B_CR, taps)
        return Dense(_channel_fold(half.mT, B_CR, taps).mT)

    def nested_projection(self, target_TD: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(cholesky(self.sigma_DD), self.times(target_TD).mT, upper=False)


class Sampled(Metric):
    """Sigma as `X^T X + ridge I`, for fewer rows than inputs; only `dense` makes a D x D matrix.

    Args:
        rows_ND: centred samples divided by the square root of their number.
        ridge: how much of the weight metric is added.
    """

    def __init__(self, rows_ND: Tensor, ridge: float = 0.0) -> None:
        self.rows_ND = rows_ND.double()
        self.ridge = ridge
        self.dim = rows_ND.shape[1]
        self.device = rows_ND.device

    def times(self, M_TD: Tensor) -> Tensor:
        return (M_TD @ self.rows_ND.mT) @ self.rows_ND + self.ridge * M_TD

    def dense(self) -> Tensor:
        return self.rows_ND.mT @ self.rows_ND + self.ridge * _eye(self.rows_ND, self.dim)

    def inner(self, M_TD: Tensor) -> Tensor:
        half = M_TD @ self.rows_ND.mT
        products_TT = product(half, half)
        if isinstance(self.ridge, Tensor) or self.ridge:  # those of a batch are a tensor
            products_TT = products_TT + self.ridge * product(M_TD, M_TD)
        return products_TT

    def marginal(self, sizes: Sequence[int], held: Sequence[int]) -> Tensor:
        K = math.prod(sizes[mode] for mode in held)
        batch = self.rows_ND.shape[:-2]
        rows = self.rows_ND.reshape(*batch, -1, *sizes)
        ends = range(rows.dim() - len(sizes), rows.dim())
        rows = rows.movedim([ends[mode] for mode in held], list(ends)[len(sizes) - len(held) :]).reshape(*batch, -1, K)
        return rows.mT @ rows * (K / self.dim) + self.ridge * _eye(rows, K)

    def fold(self, B_CR: Tensor, taps: int) -> Metric:
        folded = _channel_fold(self.rows_ND, B_CR, taps)
        gram_RR, eye_RR = B_CR.mT @ B_CR, _eye(B_CR, B_CR.shape[1])
        if len(folded) <= folded.shape[1] and torch.allclose(gram_RR, eye_RR, atol=1e-8):
            return Sampled(folded, self.ridge)
        return Dense(folded.mT @ folded + self.ridge * torch.kron(gram_RR, _eye(B_CR, taps)))

    def nested_projection(self, target_TD: Tensor) -> Tensor:
        # Block elimination over the coordinates. With X the columns done so far and the ridge r, all that is needed of
        # them is K = r I + X X^T, which is only N x N. Given them, the next block X' has the Schur complement
        # r (I + X'^T K^-1 X'), and its product with the target is r (target' + X'^T K^-1 rest).
        X_ND = self.rows_ND
        # Without a ridge, an input that others determine would get a direction of its own, made of rounding errors.
        ridge = max(self.ridge, 1e-12 * float(X_ND.square().mean()) * len(X_ND), torch.finfo(torch.float64).tiny)
        K_NN, rest_NT = ridge * _eye(X_ND, len(X_ND)), X_ND @ target_TD.mT
        Y_KT = []
        for X_NB, target_TB in zip(X_ND.split(PROJECTED, 1), target_TD.split(PROJECTED, 1), strict=True):
            solved = torch.cholesky_solve(torch.cat([X_NB, rest_NT], dim=1), cholesky(K_NN, 1e-15))
            left, cross = (X_NB.mT @ solved).split([X_NB.shape[1], len(target_TD)], dim=1)
            L_BB = cholesky(ridge * (left + _eye(left, len(left))))
            Y_KT.append(torch.linalg.solve_triangular(L_BB, ridge * (cross + target_TB.mT), upper=False))
            K_NN, rest_NT = K_NN + X_NB @ X_NB.mT, rest_NT - X_NB @ target_TB.mT
        return torch.cat(Y_KT)


class Identity(Metric):
    """The weight metric: Sigma is the identity, and the error is the Frobenius norm."""

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.dim = dim
        self.device = torch.device(device)

    def times(self, M_TD: Tensor) -> Tensor:
        return M_TD

    def dense(self) -> Tensor:
        return torch.eye(self.dim, dtype=torch.float64, device=self.device)

    def marginal(self, sizes: Sequence[int], held: Sequence[int]) -> Tensor:
        K = math.prod(sizes[mode] for mode in held)
        return torch.eye(K, dtype=torch.float64, device=self.device)

    def fold(self, B_CR: Tensor, taps: int) -> Metric:
        gram = B_CR.mT @ B_CR
        if torch.allclose(gram, _eye(gram, len(gram)), atol=1e-12):
            return Identity(len(gram) * taps, self.device)
        return Dense(torch.kron(gram, torch.eye(taps, dtype=torch.float64, device=self.device)))

    def nested_projection(self, target_TD: Tensor) -> Tensor:
        return target_TD.mT
