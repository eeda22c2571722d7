"""Reduced-rank factors of a large weight: the problem of `reduced_rank`, in single precision where that is enough.

`W Sigma W^T` and all its eigenvalues are computed once, in float32, for every rank; the factors of one rank then need
its leading eigenvectors only, to a tolerance (`leading`). Both are kept with the metric, so that a curve and the fits
after it share them.

Where float32 is enough. Rounding changes a sum of eigenvalues left out by at most about 22 units of `2^-24 ||W Sigma
W^T||_F`: measured at order 1,024 with flat spectra, powers of the index, spectra over 8 decades, and single inputs that
are ten thousand times larger than all others together; mostly it is about 1 unit. So a sum that exceeds `NOISE` units
by `1 / TOLERANCE` is right to that tolerance. If the least sum that matters, at the largest rank that saves anything,
is smaller, all is computed in float64. Powers of the index up to 1.5 and 8 decades pass, such outliers do not.

Letters: T outputs, D inputs, K the smaller of both, R rank.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from .leading import TOLERANCE, leading
from .metric import Metric
from .symmetric import eigenvalues, eigh, product

# Weights with so many entries are large. Smaller ones take a fraction of a second in float64.
LARGE = 2**20
# Below this order a full decomposition takes a few hundredths of a second.
SMALL_ORDER = 512
NOISE = 50
# Float32 holds the products of weights and moments in these ranges, and what is ten digits smaller.
WEIGHTS, ENERGIES = (1e-8, 1e8), (1e-12, 1e12)
# Pivots of a Gram matrix: relative to the largest, a smaller one says little about its direction.
LEAST_PIVOT = 1e-5


@dataclass(frozen=True)
class Large:
    """The reduced-rank problem of one weight in one metric.

    Attributes:
        mark_T: says whether another weight is the same.
        K_KK: `R Sigma R^T` in float32 or float64; R is W, or its triangular factor if it has more outputs than inputs.
        values_K: eigenvalues, descending, float64.
        root_KK: the triangular factor, None if R is W.
        regular: whether the triangular factor can be inverted.
    """

    mark_T: Tensor
    K_KK: Tensor
    values_K: Tensor
    root_KK: Tensor | None
    regular: bool

    @classmethod
    def of(cls, W_TD: Tensor, metric: Metric) -> Large:
        """The problem, as the metric or its place hold it if this weight was the last."""
        mark_T = _mark(W_TD)
        for found in (metric.last, None if metric.place is None else metric.place.get()):
            if isinstance(found, Large) and torch.equal(found.mark_T, mark_T):
                return found
        root_KK, regular = None, True
        if len(W_TD) > W_TD.shape[1]:
            root_KK, regular = _root(W_TD)
        K_KK, values_K = _spectrum(W_TD if root_KK is None else root_KK, metric, _useful(W_TD))
        metric.last = made = cls(mark_T, K_KK, values_K, root_KK, regular)
        if metric.place is not None:
            tensors = (mark_T, K_KK, values_K, *([] if root_KK is None else [root_KK]))
            metric.place.put(made, sum(tensor.nbytes for tensor in tensors))
        return made

    @property
    def energy(self) -> float:
        """`trace(W Sigma W^T)`."""
        return float(self.K_KK.diagonal().double().sum())

    def truncate(self, W_TD: Tensor, metric: Metric, rank: int) -> tuple[Tensor, Tensor, float]:
        """As `reduced_rank.truncate`; the error is at most `TOLERANCE` above the least, relatively."""
        K_KK, single = self.K_KK, self.K_KK.dtype == torch.float32
        if single and rank > _useful(W_TD):  # what is left out may be less than the rounding
            K_KK, single = metric.inner(W_TD.double() if self.root_KK is None else self.root_KK), False
        found = None
        if len(K_KK) >= SMALL_ORDER and rank <= _useful(W_TD):
            found = leading(K_KK, self.values_K, rank)
        if found is None:
            values_K, vectors_KK = eigh(K_KK)
            X_KR, error = vectors_KK[:, :rank], float(values_K[rank:].sum())
        else:
            X_KR, error = found[0], max(self.energy - found[1], float(self.values_K[rank:].sum()))
        if self.root_KK is None:
            # The product has the precision of the factors in the network, or that of its own matrix.
            left, right = (X_KR.float(), W_TD.float()) if single else (X_KR, W_TD.double())
            return X_KR, (left.mT @ right).double(), error
        return self._outputs(W_TD.double(), X_KR), X_KR.mT @ self.root_KK, error

    def _outputs(self, W_TD: Tensor, X_KR: Tensor) -> Tensor:
        """`Q X` with `W = Q R`."""
        assert self.root_KK is not None
        if not self.regular:
            return torch.linalg.qr(W_TD).Q @ X_KR
        return W_TD @ torch.linalg.solve_triangular(self.root_KK, X_KR, upper=True)


def _useful(W_TD: Tensor) -> int:
    """The largest rank at which two factors are no larger than the weight."""
    T, D = W_TD.shape
    return T * D // (T + D)


def _mark(W_TD: Tensor) -> Tensor:
    """Products with one random vector: equal for equal weights alone."""
    generator = torch.Generator().manual_seed(W_TD.shape[1])
    return W_TD @ torch.randn(W_TD.shape[1], generator=generator, dtype=W_TD.dtype).to(W_TD.device)


def _root(W_TD: Tensor) -> tuple[Tensor, bool]:
    """The triangular factor of `W = Q R`, and whether it can be inverted: from `W^T W`, in a fifth of the time."""
    W_TD = W_TD.double()
    L_DD, failed = torch.linalg.cholesky_ex(product(W_TD.mT, W_TD.mT))
    pivots_D = L_DD.diagonal()
    if bool((failed == 0) & (pivots_D.min() > LEAST_PIVOT * pivots_D.max())):
        return L_DD.mT, True
    return torch.linalg.qr(W_TD, mode="r").R, False


def _spectrum(R_KD: Tensor, metric: Metric, useful: int) -> tuple[Tensor, Tensor]:
    """`R Sigma R^T` and its eigenvalues, in float32 if the sum of those after the first `useful` allows it."""
    single_KD = R_KD.float()
    if WEIGHTS[0] < float(single_KD.abs().max()) < WEIGHTS[1]:
        K_KK = metric.to(torch.float32).inner(single_KD)
        values_K = _single_eigenvalues(K_KK)
        noise = NOISE * 2**-24 * float(torch.linalg.vector_norm(values_K))
        if float(values_K[useful:].sum()) * TOLERANCE > noise:
            return K_KK, values_K
    K_KK = metric.inner(R_KD.double())
    return K_KK, eigenvalues(K_KK)


def _single_eigenvalues(K_KK: Tensor) -> Tensor:
    """Eigenvalues, descending; zeros where float32 cannot give them."""
    if ENERGIES[0] < float(K_KK.diagonal().sum()) < ENERGIES[1]:
        with suppress(torch.linalg.LinAlgError):
            return torch.linalg.eigvalsh(K_KK).double().flip(0).clamp_min(0)
    return torch.zeros(len(K_KK), dtype=torch.float64, device=K_KK.device)
