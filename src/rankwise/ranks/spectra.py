"""The singular values that the ranks of a format cut off, from the weight's unfoldings, whitened by the metric.

A rank of `svd` and `pivoted_svd` cuts off singular values of the weight with all inputs in one dimension; the two ranks
of `tucker2` those of the unfoldings by outputs and by channels; the rank of `spatial_svd` those of the matrix
(outputs, columns) x (channels, rows). In the input metric the matrix is multiplied by `Sigma^(1/2)`; if a rank cuts
only some modes of the input, by the roots of the nearest product of a moment of these modes and one of the others. For
a tied embedding, which only has svd, it is the matrix that its fit starts from.

Letters: G groups, T outputs per group, C channels, Q taps, D = C * Q inputs, K singular values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from ..formats import FORMATS, Format
from ..formats.weights import grouped
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
        values_K: descending, float64, on the CPU; at most min(rows, columns).
        rows, columns: numbers of rows and columns that are not zero.
    """

    values_K: Tensor
    rows: int
    columns: int


Spectra = tuple[tuple[Unfolding, ...], ...]  # for each rank of a format, the unfoldings of all groups


def site_spectra(site: Site, weight: Tensor, metrics: Sequence[Metric], format: Format) -> Spectra:
    """For each rank of a format, the unfolding that it cuts in each group.

    Args:
        weight: its weight, O x I/G [x kh x kw].
        metrics: one for each group.
        format: says which unfoldings its ranks cut.

    Raises:
        ValueError: for a format whose ranks do not cut singular values of an unfolding.
    """
    if site.role is Role.TIED:
        whitened_TD = TwoUses(weight, *metrics).whitened_TD
        return ((_unfolding(energies(whitened_TD, Identity(site.in_features, weight.device)), whitened_TD),),)
    cuts = format.cuts(site)
    if cuts is None:
        fit = [each.name for each in FORMATS.values() if not each.refuses(site) and each.cuts(site) is not None]
        raise ValueError(
            f"site {site.name!r}: the ranks of {format} cut no singular values; choose among "
            f"{', '.join(fit)}, or take a rule that sees only errors, such as knapsack"
        )
    pairs = list(zip(grouped(site, weight), metrics, strict=True))
    return tuple(
        tuple(
            _outputs(W_TCQ, metric) if row is None else _inputs(W_TCQ.reshape(len(W_TCQ), -1, row), metric)
            for W_TCQ, metric in pairs
        )
        for row in cuts
    )


def joined(spectra: Sequence[Spectra]) -> Spectra:
    """The spectra of sites that share their ranks, as if they were groups of one site."""
    return tuple(tuple(chain.from_iterable(unfoldings)) for unfoldings in zip(*spectra, strict=True))


def _outputs(W_TCQ: Tensor, metric: Metric) -> Unfolding:
    """The unfolding of `W Sigma^(1/2)`, T x D."""
    W_TD = W_TCQ.flatten(1)
    return _unfolding(energies(W_TD, metric), W_TD)


def _inputs(W_TCQ: Tensor, metric: Metric) -> Unfolding:
    """The C x (T Q) unfolding between the roots of the moments of both parts of the inputs, D = C Q."""
    sizes = W_TCQ.shape[1:]
    taps_QQ = metric.marginal(sizes, (1,))
    taps_QQ = taps_QQ / taps_QQ.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    L_CC = cholesky(metric.marginal(sizes, (0,)))
    N_CC = torch.einsum("tcp,pq,tdq->cd", W_TCQ, taps_QQ, W_TCQ)
    return _unfolding(eigenvalues(L_CC.mT @ N_CC @ L_CC), W_TCQ.transpose(0, 1).flatten(1))


def _unfolding(squares_K: Tensor, matrix: Tensor) -> Unfolding:
    rows, columns = int(matrix.any(1).sum()), int(matrix.any(0).sum())
    return Unfolding(values_K=squares_K.sqrt().cpu()[: min(rows, columns)], rows=rows, columns=columns)
