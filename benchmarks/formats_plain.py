"""Plain alternating least squares for any multilinear form: an oracle that shares nothing with the package.

The problem is whitened by a Cholesky root of Sigma, and one factor after the other is solved for by a library's least
squares, with all others held. No damping, no jumps, no special cases.

Letters: T outputs, D inputs, N numbers of a factor, L rows of the least squares problem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

STARTS, SWEEPS, TOLERANCE = 3, 100, 1e-6


def best_of(
    W_TD: Tensor, sigma_DD: Tensor, equation: str, shapes: Sequence[Sequence[int]], starts: int = STARTS
) -> float:
    """Relative squared error of the best of some random starts.

    Args:
        W_TD: kernel.
        sigma_DD: positive definite.
        equation: such as "rc,rh,rw,tr->tchw", outputs first.
        shapes: of the factors.
        starts: how many, seeded 0, 1, ...
    """
    errors = []
    for seed in range(starts):
        generator = torch.Generator().manual_seed(seed)
        factors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
        errors.append(alternating(W_TD, sigma_DD, equation, factors)[-1])
    return min(errors)


def alternating(
    W_TD: Tensor, sigma_DD: Tensor, equation: str, factors: Sequence[Tensor], sweeps: int = SWEEPS
) -> list[float]:
    """Relative squared errors after every sweep; it ends early once a sweep gains less than `TOLERANCE`."""
    terms, kernel = equation.split("->")[0].split(","), equation.split("->")[1]
    factors, history = list(factors), list[float]()
    root_DD = torch.linalg.cholesky(sigma_DD)
    X_TD = W_TD @ root_DD
    for _ in range(sweeps):
        for k, own in enumerate(terms):
            others = [(term, factor) for n, (term, factor) in enumerate(zip(terms, factors, strict=True)) if n != k]
            factors[k] = _solved(X_TD, root_DD, others, own, kernel, factors[k].shape)
        V_TD = torch.einsum(equation, *factors).reshape(W_TD.shape) @ root_DD
        history.append(float((X_TD - V_TD).square().sum() / X_TD.square().sum()))
        if len(history) > 1 and history[-2] - history[-1] <= TOLERANCE * history[-2]:
            break
    return history


def work(W_TD: Tensor, shapes: Sequence[Sequence[int]]) -> float:
    """Multiplications of a sweep, roughly: rows times squared columns of the largest least squares problem."""
    return W_TD.numel() * max(math.prod(shape) for shape in shapes) ** 2


def _solved(
    X_TD: Tensor, root_DD: Tensor, others: Sequence[tuple[str, Tensor]], own: str, kernel: str, shape: Sequence[int]
) -> Tensor:
    """The factor with the least `||(W - V) Sigma^(1/2)||`, with the others held."""
    bonds = "".join(letter for letter in own if letter not in kernel)
    rest = "".join(letter for letter in kernel if letter not in own)
    product = torch.einsum(",".join(term for term, _ in others) + f"->{rest}{bonds}", *(factor for _, factor in others))
    numbers = math.prod(shape)
    unit = torch.eye(numbers, dtype=X_TD.dtype).reshape(numbers, *shape)
    J_NL = torch.einsum(f"Z{own},{rest}{bonds}->Z{kernel}", unit, product).reshape(numbers, *X_TD.shape) @ root_DD
    return torch.linalg.lstsq(J_NL.reshape(numbers, -1).mT, X_TD.reshape(-1, 1), driver="gelsy").solution.reshape(shape)
