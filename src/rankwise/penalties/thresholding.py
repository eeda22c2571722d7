"""Singular soft-thresholding: the proximal step of the nuclear norm, which makes ranks exactly smaller.

Letters: G groups, T outputs per group, D inputs per group.

Sources: Cai, Candes, Shen, "A Singular Value Thresholding Algorithm for Matrix Completion", 2008, arXiv 0810.3286;
Alvarez and Salzmann, "Compression-aware Training of Deep Networks", 2017, arXiv 1711.02638.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..linalg.metric import Identity
from ..linalg.reduced_rank import spectrum
from ..network.sites import Sites
from ..plan import Plan
from ..running.guards import unwrap
from ..training.technique import Step, Technique
from ..training.trained_sites import plan_at, set_matrix, site_matrix, trained_sites

VANISHED = 1e-5  # of the largest singular value, above the rounding of float32


def soft_threshold(W_TD: Tensor, threshold: float) -> Tensor:
    """`argmin_V 1/2 ||V - W||_F^2 + threshold ||V||_*  =  U diag(max(s - threshold, 0)) V^T`.

    Args:
        W_TD: a matrix, T x D.
        threshold: at least 0.

    Returns:
        T x D, float64, of the rank that is left.

    Example:
        >>> soft_threshold(torch.diag(torch.tensor([3.0, 1.0])), 2.0).diagonal().tolist()
        [1.0, 0.0]
    """
    squares_K, U_TK = spectrum(W_TD, Identity(W_TD.shape[1], W_TD.device))
    s_K = squares_K.sqrt()
    left = int((s_K > threshold).sum())
    if left == len(s_K) and threshold == 0:
        return W_TD.double()
    U_TR, s_R = U_TK[:, :left], s_K[:left]
    return (U_TR * ((s_R - threshold) / s_R)) @ (U_TR.mT @ W_TD.double())


@torch.no_grad()
def soft_threshold_(model: nn.Module, sites: Sites, threshold: float, only: str | Iterable[str] = "*") -> nn.Module:
    """Apply `soft_threshold` to the weights of the chosen sites, each group by itself.

    Args:
        model: changed in place and returned.
        sites: its sites.
        threshold: at least 0; after a step of gradient descent its rate times the weight of the nuclear norm.
        only: patterns of the sites.

    Raises:
        ValueError: for a threshold below 0, or patterns that match nothing.
    """
    if not 0 <= threshold < float("inf"):
        raise ValueError(f"the threshold is {threshold}; it must be 0 or more")
    model = unwrap(model)
    for site in trained_sites(model, sites, only):
        W_GTD = site_matrix(model, site)
        set_matrix(model, site, torch.stack([soft_threshold(W_TD, threshold) for W_TD in W_GTD]))
    return model


class SoftThreshold(Technique):
    """`min loss + weight sum_i ||W_i||_*` by proximal steps; the plan has the ranks that are left.

    In our measurement (docs/training.md) it is as good as compressing a dense network, not better.

    Args:
        sites: of the network that is trained.
        weight: of the nuclear norm.
        every: steps between two proximal steps, which count for all of them.
        only: patterns of the sites.

    Raises:
        ValueError: at the end, if nothing is left of a weight or nothing was saved.
    """

    def __init__(self, sites: Sites, weight: float = 1e-3, *, every: int = 10, only: str | Iterable[str] = "*") -> None:
        if every < 1 or not 0 <= weight < float("inf"):
            raise ValueError(f"every is {every}, at least 1 step, and weight {weight}, 0 or more")
        self.sites, self.weight, self.every, self.only = sites, weight, every, only

    def begin(self, model: nn.Module) -> None:
        self._model, self._since = model, 0.0
        self._chosen = trained_sites(model, self.sites, self.only)

    def after_step(self, step: Step) -> None:
        self._since += step.rate * self.weight
        if (step.number + 1) % self.every == 0:
            soft_threshold_(self._model, self.sites, self._since, [site.name for site in self._chosen])
            self._since = 0.0

    @torch.no_grad()
    def price(self) -> float:
        matrices = [W_TD for site in self._chosen for W_TD in site_matrix(self._model, site)]
        return self.weight * sum(float(torch.linalg.matrix_norm(W_TD, "nuc")) for W_TD in matrices)

    def finish(self, model: nn.Module) -> Plan:
        ranks = {site.name: max(map(numerical_rank, site_matrix(model, site))) for site in self._chosen}
        if empty := [name for name, rank in ranks.items() if not rank]:
            raise ValueError(
                f"soft-thresholding left nothing of site {empty[0]!r}; choose a smaller weight than {self.weight:g}"
            )
        return plan_at(model, self.sites, ranks, f"singular values that soft-thresholding at {self.weight:g} left")

    def state_dict(self) -> dict[str, Any]:
        return {"since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._since = state["since"]


@torch.no_grad()
def numerical_rank(W_TD: Tensor) -> int:
    """Singular values above the rounding of float32."""
    s_K = torch.linalg.svdvals(W_TD.double())
    return int((s_K > VANISHED * s_K[0]).sum()) if s_K[0] > 0 else 0
