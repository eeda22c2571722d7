"""Low-rank factors of a matrix with two uses: it multiplies inputs, and its rows are looked up.

`min over rank(M) <= r of
||(W - M) Sigma^(1/2)||^2 / ||W Sigma^(1/2)||^2 + ||D^(1/2) (W - M)||^2 / ||D^(1/2) W||^2`, with D diagonal.

In the eigenvectors of Sigma both terms are sums over entries, `sum over t, i of (d_t + s_i) (W - M)_ti^2`. There is no
closed form for such weights, but there is one for each factor: if A has orthonormal columns with a diagonal `A^T D A`,
the best B is found entry by entry. For product weights `(d_t + n) (s_i + n)` the truncated singular value decomposition
is the closed form, and is the start; `n = 1 / ||W||^2` is the average of both `d` and `s` over W.

Letters: T outputs (rows that are looked up), D inputs, R rank, K the smaller of T and D.

Source: Srebro, Jaakkola, "Weighted Low-Rank Approximations", 2003, International Conference on Machine Learning (low
rank with a weight for each entry; that these weights are sums makes the steps cheap).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .diagonal import Diagonal
from .metric import Identity, Metric
from .reduced_rank import spectrum
from .symmetric import eigh, orthonormal

# Most of the gain over the start comes with the first two or three sweeps.
SWEEPS = 20
TOLERANCE = 1e-3
# Weights below this part of the largest are rounding errors of 0.
ROUNDING = 1e-14


class LookedUp(Diagonal):
    """How often each row is looked up, and how much errors of lookups count against errors of products.

    Args:
        rows: the frequencies.
        share: of the lookups, 0 to 1; at one half both uses count the same.
    """

    def __init__(self, rows: Diagonal, share: float) -> None:
        super().__init__(rows.variance_D)
        self.share = share


class TwoUses:
    """The problem for one matrix.

    Args:
        W_TD: weight.
        inputs: Sigma, D x D.
        rows: D, T x T; only its diagonal counts. `LookedUp` rows weigh the two terms by `2 (1 - share)` and `2 share`.

    Attributes:
        total: the error without factors: 2, or less if the outputs of a use are all zero.
        whitened_TD: W with the weights of the start.

    Example:
        >>> W_TD = torch.outer(torch.arange(1.0, 4.0), torch.ones(5))
        >>> A_TR, B_RD, error = TwoUses(W_TD, Identity(5), Identity(3)).fit(rank=1)
        >>> torch.allclose(A_TR @ B_RD, W_TD.double()), error < 1e-12
        (True, True)
    """

    def __init__(self, W_TD: Tensor, inputs: Metric, rows: Metric) -> None:
        values_D, self.vectors_DD = eigh(inputs.dense())
        self.W_TD = W_TD.double() @ self.vectors_DD
        squares_TD = self.W_TD.square()
        # Ones times a diagonal matrix are its diagonal, and nothing of size T x T is made.
        diagonal_T = rows.times(squares_TD.new_ones(1, len(squares_TD)))[0]
        share = rows.share if isinstance(rows, LookedUp) else 0.5
        self.inputs_D = 2 * (1 - share) * _relative(values_D, squares_TD.sum(0))
        self.rows_T = 2 * share * _relative(diagonal_T, squares_TD.sum(1))
        self.total = self.error(torch.zeros_like(self.W_TD))
        energy = float(squares_TD.sum())
        mean = 1 / energy if energy else 1.0
        self._roots_T, self._roots_D = (self.rows_T + mean).sqrt(), (self.inputs_D + mean).sqrt()
        self.whitened_TD = self._roots_T[:, None] * self.W_TD * self._roots_D

    def error(self, M_TD: Tensor) -> float:
        """The sum above, for M in the eigenvectors of Sigma."""
        squares_TD = (self.W_TD - M_TD).square()
        return float(self.inputs_D @ squares_TD.sum(0) + self.rows_T @ squares_TD.sum(1))

    def start(self) -> tuple[Tensor, Tensor]:
        """A_TK and B_KD; their first R columns and rows are the start at rank R."""
        U_TK = spectrum(self.whitened_TD, Identity(len(self._roots_D), self.W_TD.device))[1]
        return U_TK / self._roots_T[:, None], U_TK.mT @ self.whitened_TD / self._roots_D

    def start_errors(self) -> Tensor:
        """Errors of the start at ranks 1 to K; if one more component is worse, the error of the lower rank."""
        A_TK, B_KD = self.start()
        rows_KK, inputs_KK = A_TK.mT @ (A_TK * self.rows_T[:, None]), (B_KD * self.inputs_D) @ B_KD.mT
        products_KK = rows_KK * (B_KD @ B_KD.mT) + (A_TK.mT @ A_TK) * inputs_KK
        # What is left at rank r is the sum over all pairs of components from r on.
        tails_K = products_KK.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
        return torch.cat([tails_K[1:], tails_K.new_zeros(1)]).clamp_min(0).cummin(0).values

    def fit(self, rank: int) -> tuple[Tensor, Tensor, float]:
        """A_TR, B_RD and the error, by alternating least squares from the start; the error never grows."""
        A_TR, last = self.start()[0][:, :rank], self.total
        for _ in range(SWEEPS):
            A_TR, B_RD, _ = _other_factor(self.W_TD, A_TR, self.rows_T, self.inputs_D)
            B_DR, A_RT, explained = _other_factor(self.W_TD.mT, B_RD.mT, self.inputs_D, self.rows_T)
            A_TR, B_RD, missed = A_RT.mT, B_DR.mT, self.total - explained
            if last - missed <= TOLERANCE * missed:
                break
            last = missed
        return A_TR, B_RD @ self.vectors_DD.mT, self.error(A_TR @ B_RD)


def _relative(weights_N: Tensor, squares_N: Tensor) -> Tensor:
    """Weights scaled so that the weighted squares add up to 1."""
    weights_N = weights_N.clamp_min(0)
    energy = float(weights_N @ squares_N)
    return weights_N / energy if energy > 0 else torch.zeros_like(weights_N)


def _other_factor(W_TD: Tensor, A_TR: Tensor, rows_T: Tensor, inputs_D: Tensor) -> tuple[Tensor, Tensor, float]:
    """`min over B of sum (d_t + s_i) (W - A B)_ti^2`: A with orthonormal columns, the best B, and what they explain."""
    A_TR = orthonormal(A_TR)
    diagonal_R, turned_RR = eigh(A_TR.mT @ (A_TR * rows_T[:, None]))
    A_TR = A_TR @ turned_RR
    gain_RD = (A_TR.mT @ W_TD) * inputs_D + (A_TR * rows_T[:, None]).mT @ W_TD
    weights_RD = diagonal_R[:, None] + inputs_D
    counted = weights_RD > ROUNDING * weights_RD.max()
    B_RD = torch.where(counted, gain_RD / weights_RD, 0.0)
    return A_TR, B_RD, float((gain_RD * B_RD).sum())
