"""Trained rank pruning: the weights are cut to low rank every few steps, and learn in between.

Source: Xu, Li, Zhang, Wen, Wang, Qi, Chen, Lin, Xiong, "TRP: Trained Rank Pruning for Efficient Deep Neural Networks",
2020, arXiv 2004.14566. Its nuclear subgradient is `penalties.Penalised(sites, "nuclear", weight)` beside this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..linalg.metric import Identity
from ..linalg.reduced_rank import spectrum
from ..network.site import Site
from ..network.sites import Sites
from ..plan import Plan
from ..running.guards import unwrap
from ..training.technique import Step, Technique
from ..training.trained_sites import plan_at, set_matrix, site_matrix, trained_sites


class RankPruning(Technique):
    """`W <- the least rank with ||W - V||_F^2 <= lost ||W||_F^2`, every few steps; the plan has the last ranks.

    The held-out samples judge the network with all weights cut. In our measurement (docs/training.md) this lost to
    compressing a dense network on average.

    Args:
        sites: of the network that is trained.
        lost: share of the energy of each weight that a cut may lose.
        every: steps between two cuts.
        only: patterns of the sites.

    Example:
        >>> import rankwise as rw
        >>> from rankwise.training import Loop, LoopOptions, Samples
        >>> model, x = nn.Sequential(nn.Linear(16, 16)), torch.randn(64, 16)
        >>> loss = lambda inputs, _: (model(inputs) - inputs).square().mean()
        >>> told = RankPruning(rw.find(model, x[:1]), lost=0.3)
        >>> loop = Loop(model, loss, Samples.of(x), LoopOptions(epochs=1), techniques=[told])
        >>> _ = loop.run()
        >>> loop.plan["0"].ranks < (16,)
        True
    """

    def __init__(self, sites: Sites, lost: float = 0.02, *, every: int = 20, only: str | Iterable[str] = "*") -> None:
        if not 0 < lost < 1 or every < 1:
            raise ValueError(f"lost is {lost}, a share above 0 and below 1, and every {every}, at least 1 step")
        self.sites, self.lost, self.every, self.only = sites, lost, every, only

    def begin(self, model: nn.Module) -> None:
        self._model = unwrap(model)
        self._chosen = trained_sites(self._model, self.sites, self.only, "prune")

    def after_step(self, step: Step) -> None:
        if (step.number + 1) % self.every == 0:
            self.cut()

    def cut(self) -> dict[str, int]:
        """Cut all weights now; returns their ranks, of a convolution's groups the largest."""
        ranks = {}
        for site in self._chosen:
            W_GTD, ranks[site.name] = self._cut(site)
            set_matrix(self._model, site, W_GTD)
        return ranks

    @contextmanager
    def judging(self, model: nn.Module) -> Iterator[None]:
        kept = {site.name: site_matrix(self._model, site).detach().clone() for site in self._chosen}
        self.cut()
        try:
            yield
        finally:
            for site in self._chosen:
                set_matrix(self._model, site, kept[site.name])

    def finish(self, model: nn.Module) -> Plan:
        return plan_at(model, self.sites, self.cut(), f"a cut that loses {self.lost:g} of the energy")

    @torch.no_grad()
    def _cut(self, site: Site) -> tuple[Tensor, int]:
        groups = [
            (W_TD, *spectrum(W_TD, Identity(W_TD.shape[1], W_TD.device))) for W_TD in site_matrix(self._model, site)
        ]
        rank = max(least_rank(squares_K, self.lost) for _, squares_K, _ in groups)
        return torch.stack([U_TK[:, :rank] @ (U_TK[:, :rank].mT @ W_TD.double()) for W_TD, _, U_TK in groups]), rank


def least_rank(squares_K: Tensor, lost: float) -> int:
    """The least rank, at least 1, that loses no more than a share of the sum of squares, largest first.

    Example:
        >>> least_rank(torch.tensor([8.0, 1.0, 1.0]), 0.1), least_rank(torch.tensor([8.0, 1.0, 1.0]), 0.05)
        (2, 3)
    """
    tails_K = squares_K.flip(0).cumsum(0).flip(0)  # what ranks 0, 1, ... lose
    allowed = lost * tails_K[0] * (1 + 1e-9)
    return max(int((tails_K > allowed).sum()), 1)
