"""Metrics of methods of the literature, from what `collect` adds up beside the moments.

| kind | Sigma | outputs | method |
|---|---|---|---|
| magnitude | `diag(E abs(x))` | | ASVD: the input is scaled by the root of its mean magnitude |
| pooled | mean covariance within parts of the data | | Bolaco |
| rows | identity | `diag(sum_j E g_ij^2)`, g the gradient of the weight | FWSVD |

Letters: G groups, D inputs per group, T outputs per group, K parts of the data.

Sources: Yuan et al., "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models", 2023,
arXiv 2312.05821; Ji, Xiang, Li, Chen, Liu, Zhang, "Adaptive Feature-based Low-Rank Compression of Large Language Models
via Bayesian Optimization", 2024, arXiv 2405.10616; Hsu, Hua, Chang, Lou, Shen, Jin, "Language Model Compression with
Weighted Low-rank Factorization", 2022, arXiv 2207.00112.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..linalg.diagonal import Diagonal
from ..linalg.metric import Dense, Identity, Metric
from ..linalg.two_sided import TwoSided
from .shrinkage import DAMPING

KINDS = ("magnitude", "pooled", "rows")
MISSING = {
    "magnitude": "mean magnitudes of the inputs",
    "pooled": "means of parts of the data",
    "rows": 'gradients of the weights (gradients="weights")',
}


def missing(kind: str) -> ValueError:
    """The error for statistics without what a metric needs."""
    return ValueError(
        f"the statistics hold no {MISSING[kind]}, which the metric {kind!r} needs; collect them again with this "
        "version, and fit one-shot, since sequential fits collect moments alone"
    )


def magnitudes(magnitude_GD: Tensor, shrink: float = 0.0) -> list[Metric]:
    """`Sigma = diag(E abs(x))` of each group, shrunk towards its mean."""
    return [Diagonal(each_D, (DAMPING + shrink) / (1 - shrink)) for each_D in magnitude_GD]


def within_parts(second_GDD: Tensor, parts_KGD: Tensor, parts_K: Tensor, shrink: float = 0.0) -> list[Metric]:
    """`Sigma = sum_k n_k (E_k x x^T - mu_k mu_k^T) / (N - K)`: the mean covariance within the parts of the data.

    Args:
        second_GDD: `E x x^T` of all rows.
        parts_KGD: mean of each part.
        parts_K: rows of each part, `n_k`, with sum `N`.
    """
    total, parts = float(parts_K.sum()), int((parts_K > 0).sum())
    share_K = parts_K / total
    between_GDD = torch.einsum("k,kgd,kge->gde", share_K, parts_KGD, parts_KGD)
    scale = total / max(total - parts, 1.0)
    return [Dense(scale * each_DD, (DAMPING + shrink) / (1 - shrink)) for each_DD in second_GDD - between_GDD]


def weighted_rows(rows_GT: Tensor, dim: int) -> TwoSided:
    """The weight metric with `diag(sum_j E g_ij^2)` for the outputs."""
    identities: Sequence[Metric] = [Identity(dim, rows_GT.device) for _ in rows_GT]
    return TwoSided.of(identities, torch.diag_embed(rows_GT), DAMPING)
