"""Whether texts stay near the same other texts: embeddings of two networks, row by row.

Letters: N rows, T positions, D numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from ..running.batches import made
from ..running.calling import call
from ..running.guards import unwrap
from ..running.outputs import leaves_of
from ..running.pristine import pristine
from ..running.verbs import verb
from .bootstrap import Interval, mean_interval


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Embeddings of one network beside those of another.

    Attributes:
        cosines_N: between the two embeddings of each row.
        kept_N: 1 where the nearest other row is the same in both networks, else 0.
    """

    cosines_N: Tensor
    kept_N: Tensor

    @property
    def cosine(self) -> Interval:
        """Mean cosine."""
        return mean_interval(self.cosines_N, torch.ones_like(self.cosines_N))

    @property
    def kept(self) -> Interval:
        """Nearest neighbours that are kept, in per cent."""
        return mean_interval(100 * self.kept_N, torch.ones_like(self.kept_N))


@verb
def embedded(model: nn.Module, batches: Iterable[Any]) -> Tensor:
    """One vector for each row, N x D: the mean over its real positions of what the network returns for them.

    Args:
        model: returns rows x positions x numbers (the first output, such as `last_hidden_state`), or rows x numbers,
            which are taken as they are.
        batches: inputs; positions with 0 in the `attention_mask` of a mapping do not count.

    Raises:
        ValueError: for outputs of another shape, or if there is no batch.

    Source: Reimers, Gurevych, "Sentence-BERT", 2019, arXiv 1908.10084 (the mean over tokens).
    """
    model = unwrap(model)
    found = []
    with pristine(model):
        for index, batch in enumerate(made(batches)):
            _, values = next(iter(leaves_of(call(model, batch, index=index))))
            if values.dim() not in (2, 3) or not values.is_floating_point():
                raise ValueError(
                    f"batch {index}: the network returns {list(values.shape)}; embeddings are rows x numbers, or "
                    "rows x positions x numbers"
                )
            if values.dim() == 3:
                mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
                real = values.new_ones(values.shape[:2]) if mask is None else mask.to(values)
                values = (values * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)
            found.append(values.double().cpu())
    if not found:
        raise ValueError("there are no batches to embed")
    return torch.cat(found)


def similarity(dense_ND: Tensor, small_ND: Tensor) -> Similarity:
    """`cos(dense_n, small_n)`, and whether `argmax over m != n of cos(x_n, x_m)` is the same in both.

    Args:
        dense_ND, small_ND: embeddings of the same rows, such as `embedded` gives.

    Raises:
        ValueError: for embeddings of different shapes, or fewer than three rows, each of which has one neighbour only.

    Example:
        >>> rows_ND = torch.eye(4) + 0.1 * torch.arange(16.0).reshape(4, 4)
        >>> print(similarity(rows_ND, 2 * rows_ND).kept)
        100 (100 to 100)
    """
    if dense_ND.shape != small_ND.shape:
        raise ValueError(f"embeddings of shape {list(dense_ND.shape)} and {list(small_ND.shape)} cannot be compared")
    if len(dense_ND) < 3:
        raise ValueError(f"there are {len(dense_ND)} rows; neighbours need at least three")
    nearest = []
    for rows_ND in (dense_ND, small_ND):
        unit_ND = normalize(rows_ND.double(), dim=1)
        nearest.append((unit_ND @ unit_ND.mT).fill_diagonal_(-torch.inf).argmax(1))
    cosines_N = cosine_similarity(dense_ND.double(), small_ND.double(), dim=1)
    return Similarity(cosines_N=cosines_N, kept_N=(nearest[0] == nearest[1]).double())
