"""Rows of a matrix of which all other rows are small combinations.

Letters: T rows, R columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows are exchanged while that multiplies the volume of the chosen ones by more than this.
GROWTH = 1.05


def pivots(U_TR: Tensor) -> tuple[Tensor, Tensor]:
    """`U = C U[rows]` with `|C| <= 1.05` everywhere: no row is an amplified combination of the chosen ones.

    A pivoted elimination gives the first rows; then rows are exchanged one at a time for a larger volume.

    Args:
        U_TR: orthonormal columns, T x R with R <= T.

    Returns:
        Numbers of the R rows, and `C_TR`, whose chosen rows are unit vectors.

    Example:
        >>> rows, C = pivots(torch.tensor([[0.1], [1.0], [-0.5]], dtype=torch.float64))
        >>> rows.tolist(), C.flatten().tolist()
        ([1], [0.1, 1.0, -0.5])

    Source: Goreinov, Oseledets, Savostyanov, Tyrtyshnikov, Zamarashkin, "How to find a good submatrix", 2010; for
    low-rank layers Zhao et al., "Pivoting Factorization", 2025, arXiv 2501.19090.
    """
    T, R = U_TR.shape
    _, exchanges = torch.linalg.lu_factor(U_TR)
    order = torch.arange(T, device=U_TR.device)
    for place, other in enumerate((exchanges - 1).tolist()):
        order[[place, other]] = order[[other, place]]
    rows = order[:R].clone()
    C_TR = torch.linalg.solve(U_TR[rows], U_TR, left=False)
    for _ in range(10 * T):  # each exchange multiplies the volume by |value|, so this ends long before
        worst = int(C_TR.abs().argmax())
        row, column = divmod(worst, R)
        value = C_TR[row, column]
        if abs(float(value)) <= GROWTH:
            break
        # Rank-one update of C for the exchange of one row.
        change = C_TR[row].clone()
        change[column] -= 1
        C_TR = C_TR - torch.outer(C_TR[:, column], change / value)
        rows[column] = row
    C_TR = torch.linalg.solve(U_TR[rows], U_TR, left=False)
    C_TR[rows] = torch.eye(R, dtype=C_TR.dtype, device=C_TR.device)
    return rows, C_TR
