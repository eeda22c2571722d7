"""The singular values that the ranks of a format cut off: of the weight's unfoldings, whitened by the metric.

A rank of `svd` and of `pivoted_svd` cuts off singular values of the weight with all inputs in one dimension; the two
ranks of `tucker2` those of the unfoldings by outputs and by channels; the rank of `spatial_svd` those of the matrix
(outputs, columns) x (channels, rows). In the input metric the matrix is multiplied by `Sigma^(1/2)`, or, where a rank
cuts only some modes of the input, by the roots of the nearest product of one moment for these modes and one for the
others. Of a tied embedding, which has svd alone, the matrix is that of the start of its fit.

Letters: G groups, T outputs per group, C channels, Q taps, D = C * Q inputs, K singular values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from ..formats.base import grouped
from ..layers.kinds import Role
from ..linalg.metric import Identity, Metric
from ..linalg.reduced_rank import energies
from ..linalg.symmetric import cholesky, eigenvalues
from ..linalg.two_uses import TwoUses
from ..network.site import Site


@dataclass(frozen=True, kw_only=True)
class Unfolding:
    """Singular values of a matrix, and its size without rows and columns of zeros.

    Attributes:
        values_K: descending, float64, on the CPU; min(rows, columns) of them at most.
        rows, columns: that are not zero.
    """

    values_K: Tensor
    rows: int
    columns: int


# For each rank of a format: the unfoldings of all groups.
Spectra = tuple[tuple[Unfolding, ...], ...]


def site_spectra(site: Site, weight: Tensor, metrics: Sequence[Metric], format: str) -> Spectra:
    """Singular values of the unfoldings that the ranks of a format cut.

    Args:
        site: the layer.
        weight: its weight, O x I/G [x kh x kw].
        metrics: of each group.
        format: "svd", "pivoted_svd", "spatial_svd" or "tucker2".

    Returns:
        For each rank one unfolding for each group.

    Raises:
        ValueError: for a format whose ranks do not cut singular values of an unfolding.
    """
    if site.role is Role.TIED:
        whitened_TD = TwoUses(weight, *metrics).whitened_TD
        return ((_unfolding(energies(whitened_TD, Identity(site.in_features, weight.device)), whitened_TD),),)
    W_GTCQ = grouped(site, weight)
    pairs = list(zip(W_GTCQ, metrics, strict=True))
    if format in ("svd", "pivoted_svd"):
        return (tuple(_outputs(W_TCQ, metric) for W_TCQ, metric in pairs),)
    if format == "tucker2":
        outputs = tuple(_outputs(W_TCQ, metric) for W_TCQ, metric in pairs)
        return outputs, tuple(_channels(W_TCQ, metric) for W_TCQ, metric in pairs)
    if format == "spatial_svd":  # (channel, row) in the place of the channels, columns in that of the taps
        columns = site.kernel_size[1]
        return (tuple(_channels(W_TCQ.reshape(len(W_TCQ), -1, columns), metric) for W_TCQ, metric in pairs),)
    raise ValueError(
        f"site {site.name!r}: the ranks of {format} cut no singular values; choose among svd, pivoted_svd, spatial_svd "
        f"and tucker2, or take a rule that sees errors alone, such as knapsack"
    )


def joined(spectra: Sequence[Spectra]) -> Spectra:
    """Of sites that share their ranks: for each rank the unfoldings of all of them, as if they were groups of one."""
    return tuple(tuple(chain.from_iterable(unfoldings)) for unfoldings in zip(*spectra, strict=True))


def _outputs(W_TCQ: Tensor, metric: Metric) -> Unfolding:
    """Of `W Sigma^(1/2)`, T x D."""
    W_TD = W_TCQ.flatten(1)
    return _unfolding(energies(W_TD, metric), W_TD)


def _channels(W_TCQ: Tensor, metric: Metric) -> Unfolding:
    """Of the C x (T Q) unfolding between the roots of the channels' and the taps' moment."""
    sizes = W_TCQ.shape[1:]
    taps_QQ = metric.marginal(sizes, (1,))
    taps_QQ = taps_QQ / taps_QQ.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    L_CC = cholesky(metric.marginal(sizes, (0,)))
    N_CC = torch.einsum("tcp,pq,tdq->cd", W_TCQ, taps_QQ, W_TCQ)
    return _unfolding(eigenvalues(L_CC.mT @ N_CC @ L_CC), W_TCQ.transpose(0, 1).flatten(1))


def _unfolding(squares_K: Tensor, matrix: Tensor) -> Unfolding:
    rows, columns = int(matrix.any(1).sum()), int(matrix.any(0).sum())
    return Unfolding(values_K=squares_K.sqrt().cpu()[: min(rows, columns)], rows=rows, columns=columns)
