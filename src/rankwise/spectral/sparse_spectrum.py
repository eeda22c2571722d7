"""SVD training: singular vectors that stay near orthonormal, singular values that become few.

Letters: G groups, T outputs per group, D inputs per group, K = min(T, D).

Source: Yang, Tang, Wen, Yan, Hu, Li, Cheng, Li, Chen, "Learning Low-rank Deep Neural Networks via Singular Vector
Orthogonality Regularization and Singular Value Sparsification", 2020, arXiv 2004.09031.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.kinds import output_first, site_kind
from ..network.replacing import module_at
from ..network.sites import Sites
from ..plan import Plan
from ..projections.rank_pruning import least_rank
from ..running.guards import unwrap
from ..training.orthogonal import soft
from ..training.technique import Technique
from ..training.trained_sites import plan_at, set_matrix, site_matrix, trained_sites
from .parametrised import check_free, parametrise_, plain_

SPARSITIES = ("hoyer", "l1")


class Spectrum(nn.Module):
    """A weight `U diag(s) V^T` as three parameters, for `parametrize`."""

    def __init__(self, layer: Any, groups: int) -> None:
        super().__init__()
        self.kind, self.groups, self.layer_groups = site_kind(layer), groups, getattr(layer, "groups", 1)
        self.shape = output_first(self.kind, layer.weight, self.layer_groups).shape

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = output_first(self.kind, weight, self.layer_groups)
        W_GTD = rows.reshape(self.groups, len(rows) // self.groups, -1).double()
        U_GTK, s_GK, V_GKD = torch.linalg.svd(W_GTD, full_matrices=False)
        return U_GTK.to(weight), s_GK.to(weight), V_GKD.mT.contiguous().to(weight)

    def forward(self, U_GTK: Tensor, s_GK: Tensor, V_GDK: Tensor) -> Tensor:
        W_GTD = (U_GTK * s_GK[:, None]) @ V_GDK.mT
        return output_first(self.kind, W_GTD.reshape(self.shape), self.layer_groups)


class SparseSpectrum(Technique):
    """Trained singular values as a technique of `Loop`; the plan keeps the largest of them.

        loss + orthogonal sum_i (||U_i^T U_i - I||_F^2 + ||V_i^T V_i - I||_F^2) / K_i^2 + weight sum_i f(s_i)

    with `f(s) = ||s||_1 / ||s||_2` ("hoyer") or `||s||_1` ("l1"). At the end the weights are merged, and each is cut to
    the least rank that loses no more than `lost` of its energy. In our measurement (docs/training.md) it is as good
    as compressing a dense network, not better.

    Args:
        sites: of the network that is trained.
        weight: of f.
        sparsity: "hoyer" or "l1".
        orthogonal: weight that keeps the singular vectors orthonormal.
        lost: share of the energy that the last cut may lose; the held-out samples judge the cut network.
        only: patterns of the sites.

    Raises:
        ValueError: for another f, or numbers out of range.

    Example:
        >>> import rankwise as rw
        >>> from rankwise.training import Loop, LoopOptions, Samples
        >>> model, x = nn.Sequential(nn.Linear(16, 16)), torch.randn(64, 16)
        >>> told = SparseSpectrum(rw.find(model, x[:1]), lost=0.3)
        >>> loss = lambda inputs, _: model(inputs).square().mean()
        >>> loop = Loop(model, loss, Samples.of(x), LoopOptions(epochs=1), techniques=[told])
        >>> _ = loop.run()
        >>> loop.plan["0"].ranks < (16,)
        True
    """

    def __init__(
        self,
        sites: Sites,
        weight: float = 1e-2,
        *,
        sparsity: str = "hoyer",
        orthogonal: float = 1.0,
        lost: float = 0.02,
        only: str | Iterable[str] = "*",
    ) -> None:
        if sparsity not in SPARSITIES:
            raise ValueError(f"sparsity {sparsity!r} is not one of {', '.join(SPARSITIES)}")
        if not (0 <= weight < float("inf") and 0 <= orthogonal < float("inf") and 0 < lost < 1):
            raise ValueError(f"weight is {weight}, orthogonal {orthogonal}, both at least 0, and lost {lost}, a share")
        self.sites, self.weight, self.sparsity = sites, weight, sparsity
        self.orthogonal, self.lost, self.only = orthogonal, lost, only

    def begin(self, model: nn.Module) -> None:
        self._model = unwrap(model)
        check_free(self._model)
        self._chosen = trained_sites(self._model, self.sites, self.only, "parametrise")
        parametrise_(self._model, self._chosen, lambda site, layer: Spectrum(layer, site.groups))

    def penalty(self) -> Tensor:
        total: Any = 0.0
        for U_GTK, s_GK, V_GDK in self._parameters():
            sizes_G = s_GK.abs().sum(1)
            if self.sparsity == "hoyer":
                sizes_G = sizes_G / torch.linalg.vector_norm(s_GK, dim=1).clamp_min(torch.finfo(s_GK.dtype).tiny)
            total = total + self.weight * sizes_G.sum()
            total = total + self.orthogonal * (soft(U_GTK) + soft(V_GDK)) / s_GK.shape[1] ** 2
        result: Tensor = total
        return result

    @contextmanager
    def judging(self, model: nn.Module) -> Iterator[None]:
        kept = [[value.detach().clone() for value in own] for own in self._parameters()]
        for site in self._chosen:
            layer: Any = module_at(self._model, site.name)
            layer.weight = _cut(layer.weight.detach(), site.groups, layer, self.lost)
        try:
            yield
        finally:
            with torch.no_grad():
                for own, values in zip(self._parameters(), kept, strict=True):
                    for parameter, value in zip(own, values, strict=True):
                        parameter.copy_(value)

    def finish(self, model: nn.Module) -> Plan:
        plain_(self._model, self._chosen)
        ranks = {}
        for site in self._chosen:
            W_GTD = site_matrix(self._model, site).detach()
            W_GTD, ranks[site.name] = _leading(W_GTD, self.lost)
            set_matrix(self._model, site, W_GTD)
        return plan_at(model, self.sites, ranks, f"trained singular values but {self.lost:g} of their energy")

    def _parameters(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        held: list[Any] = [module_at(self._model, site.name) for site in self._chosen]
        lists = [layer.parametrizations["weight"] for layer in held]
        return [(each.original0, each.original1, each.original2) for each in lists]


def _leading(W_GTD: Tensor, lost: float) -> tuple[Tensor, int]:
    """The weights cut to the least common rank that loses no more than a share of any group's energy."""
    U_GTK, s_GK, V_GKD = torch.linalg.svd(W_GTD.double(), full_matrices=False)
    rank = max(least_rank(s_K.square(), lost) for s_K in s_GK)
    return (U_GTK[:, :, :rank] * s_GK[:, None, :rank]) @ V_GKD[:, :rank], rank


def _cut(weight: Tensor, groups: int, layer: Any, lost: float) -> Tensor:
    """A weight as its layer stores it, cut by `_leading`."""
    kind, own = site_kind(layer), getattr(layer, "groups", 1)
    rows = output_first(kind, weight, own)
    W_GTD, _ = _leading(rows.reshape(groups, len(rows) // groups, -1), lost)
    return output_first(kind, W_GTD.to(weight).reshape(rows.shape), own)
