"""Kernels and metrics on which partial Tucker factorisations are tried, and their error from its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from rankwise.linalg.metric import Dense, Identity, Metric, Sampled

T, C, Q = 7, 6, 4
FORMS = ["dense", "sampled", "identity"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def patches(rows: int, channels: int = C, taps: int = Q, seed: int = 0) -> Tensor:
    """Correlated inputs: neighbouring taps repeat each other, channels are mixtures of unequal strength."""
    mix = normal(channels, channels, seed=seed) * torch.logspace(0, -1.5, channels, dtype=torch.float64)[:, None]
    smooth = 0.8 * torch.ones(taps, taps, dtype=torch.float64) + 0.4 * torch.eye(taps, dtype=torch.float64)
    x = normal(rows, channels, taps, seed=seed + 1)
    return torch.einsum("ncq,cd,qp->ndp", x, mix, smooth).flatten(1) / rows**0.5


def problem(form: str, seed: int = 0) -> tuple[Tensor, Metric]:
    W_TCQ = normal(T, C, Q, seed=seed)
    rows_ND = patches(14 if form == "sampled" else 200, seed=seed + 10)
    sigma = rows_ND.mT @ rows_ND
    metrics = {"dense": Dense(sigma), "sampled": Sampled(rows_ND), "identity": Identity(C * Q)}
    return W_TCQ, metrics[form]


def direct(W_TCQ: Tensor, V_TCQ: Tensor, metric: Metric) -> float:
    missed = (W_TCQ - V_TCQ).flatten(1)
    return float((missed @ metric.dense() @ missed.mT).trace())


def planted(R: int, S: int, seed: int = 0) -> Tensor:
    A, G, B = normal(T, R, seed=seed), normal(R, S, Q, seed=seed + 1), normal(C, S, seed=seed + 2)
    return torch.einsum("tr,rsq,cs->tcq", A, G, B)
