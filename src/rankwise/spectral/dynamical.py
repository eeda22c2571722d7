"""Dynamical low-rank training: bases that follow the gradient, a core that learns, ranks that adapt.

Letters: G groups, T outputs per group, D inputs per group, R largest rank, B the rank now.

Sources: Schotthoefer, Zangrando, Kusch, Ceruti, Tudisco, "Low-rank lottery tickets: finding efficient low-rank neural
networks via matrix differential equations", 2022, arXiv 2205.13571 (augmented bases, truncation); Schotthoefer, Yang,
Schnake, "Dynamical Low-Rank Compression of Neural Networks with Robustness under Adversarial Attacks", 2025, arXiv
2505.08022 (a spectral regulariser that bounds the condition number of the core; read in summary, its form here and the
bound at the truncation are ours).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..formats.svd import SVD
from ..layers.kinds import output_first, site_kind
from ..network.replacing import module_at
from ..network.site import Site
from ..network.sites import Sites
from ..plan import Plan
from ..running.calling import call
from ..running.guards import unwrap
from ..training.technique import Step, Technique
from ..training.together import world
from ..training.trained_sites import plan_at, site_matrix, trained_sites
from .parametrised import check_free, parametrise_, plain_


class Cored(nn.Module):
    """A weight `U S V^T` with orthonormal bases as buffers and the core as the parameter, for `parametrize`.

    Columns beyond the rank of now are zero, so that all sizes stay what they are.

    Args:
        layer: whose weight it is.
        W_GTD: the weight.
        rank: to start with.
        largest: rank that the buffers have room for.
    """

    U_GTR: Tensor
    V_GDR: Tensor
    rank: Tensor

    def __init__(self, layer: Any, W_GTD: Tensor, rank: int, largest: int) -> None:
        super().__init__()
        self.kind, self.layer_groups, self.shape = site_kind(layer), getattr(layer, "groups", 1), layer.weight.shape
        U_GTK, s_GK, V_GKD = torch.linalg.svd(W_GTD.detach().double(), full_matrices=False)
        self.start_GK = s_GK[:, :rank]
        self.register_buffer("U_GTR", _padded(U_GTK[:, :, :rank].to(W_GTD), largest))
        self.register_buffer("V_GDR", _padded(V_GKD[:, :rank].mT.to(W_GTD), largest))
        self.register_buffer("rank", torch.tensor(rank, device=W_GTD.device))

    def right_inverse(self, weight: Tensor) -> Tensor:
        size = self.U_GTR.shape[2]
        core_GRR = weight.new_zeros(len(self.U_GTR), size, size)
        rank = self.start_GK.shape[1]
        core_GRR[:, :rank, :rank] = torch.diag_embed(self.start_GK).to(weight)
        return core_GRR

    def forward(self, S_GRR: Tensor) -> Tensor:
        W_GTD = self.U_GTR @ S_GRR @ self.V_GDR.mT
        shape = output_first(self.kind, torch.empty(self.shape, device="meta"), self.layer_groups).shape
        return output_first(self.kind, W_GTD.reshape(shape), self.layer_groups)

    @torch.no_grad()
    def truncate(self, S_GRR: Tensor, lost: float, condition: float) -> int:
        """Cut the core to its leading singular values, rotate the bases onto them, and return the rank.

        Args:
            S_GRR: the core, changed in place.
            lost: largest tail `||s[r:]|| / ||s||` to cut off.
            condition: largest `s_1 / s_r` to keep.
        """
        before = int(self.rank)
        P_GBB, s_GB, Q_GBB = torch.linalg.svd(S_GRR[:, :before, :before].double())
        tails_GB = s_GB.square().flip(1).cumsum(1).flip(1).sqrt()
        needed = tails_GB > lost * tails_GB[:, :1]
        needed &= s_GB * condition >= s_GB[:, :1]
        rank = max(int(needed.sum(1).max()), 1)
        U_GTB = self.U_GTR[:, :, :before].double() @ P_GBB[:, :, :rank]
        V_GDB = self.V_GDR[:, :, :before].double() @ Q_GBB.mT[:, :, :rank]
        self.U_GTR.copy_(_padded(U_GTB.to(self.U_GTR), self.U_GTR.shape[2]))
        self.V_GDR.copy_(_padded(V_GDB.to(self.V_GDR), self.V_GDR.shape[2]))
        S_GRR.zero_()
        S_GRR[:, :rank, :rank] = torch.diag_embed(s_GB[:, :rank]).to(S_GRR)
        self.rank.fill_(rank)
        return rank

    @torch.no_grad()
    def augment(self, U_gradient: Tensor, V_gradient: Tensor) -> int:
        """Add the directions of the bases' gradients, up to twice the rank, and return the new one."""
        rank, room = int(self.rank), self.U_GTR.shape[2]
        wider = min(2 * rank, room)
        for basis, gradient in ((self.U_GTR, U_gradient), (self.V_GDR, V_gradient)):
            both = torch.cat([basis[:, :, :rank], gradient[:, :, : wider - rank]], 2).double()
            # Householder reflections keep the columns orthonormal even where a gradient lies in the basis.
            basis[:, :, rank:wider] = torch.linalg.qr(both).Q[:, :, rank:].to(basis)
        self.rank.fill_(wider)
        return wider


class Dynamical(Technique):
    """Low-rank weights from the first step on, as a technique of `Loop`: `W = U S V^T`, of which S is trained.

    Every few steps the core is truncated, and the bases are augmented by the gradients of the loss in them. In between
    the bases rest. The plan has the ranks of the last truncation. In our measurement (docs/training.md) it lost to
    compressing a dense network on average.

        loss + bound sum_i ||S_i^T S_i - (||S_i||^2 / r_i) I||_F^2,    s_1 / s_r <= condition  after a truncation

    Args:
        sites: of the network that is trained.
        loss: of outputs and labels, for the gradients of the bases.
        lost: largest tail of singular values that a truncation cuts off, relative to all.
        condition: largest condition number of a core that is left.
        bound: weight of the regulariser, which draws singular values together.
        start: rank to start with, as a share of the full one.
        every: steps between two truncations.
        only: patterns of the sites.

    Raises:
        ValueError: for numbers out of range, or layers whose weight is parametrised already.

    Example:
        >>> import rankwise as rw
        >>> from rankwise.training import Loop, LoopOptions, Samples
        >>> model, x = nn.Sequential(nn.Linear(16, 16)), torch.randn(64, 16)
        >>> told = Dynamical(rw.find(model, x[:1]), lambda outputs, _: outputs.square().mean(), lost=0.4)
        >>> loss = lambda inputs, _: model(inputs).square().mean()
        >>> loop = Loop(model, loss, Samples.of(x), LoopOptions(epochs=1), techniques=[told])
        >>> _ = loop.run()
        >>> loop.plan["0"].ranks < (8,), type(model[0])
        (True, <class 'torch.nn.modules.linear.Linear'>)
    """

    def __init__(
        self,
        sites: Sites,
        loss: Callable[[Any, Tensor | None], Tensor],
        *,
        lost: float = 0.05,
        condition: float = 100.0,
        bound: float = 0.0,
        start: float = 0.5,
        every: int = 50,
        only: str | Iterable[str] = "*",
    ) -> None:
        if not (0 < lost < 1 and 0 < start <= 1):
            raise ValueError(f"lost is {lost} and start {start}; both are shares, above 0")
        if not (condition >= 1 and 0 <= bound < float("inf")) or every < 1:
            raise ValueError(
                f"condition is {condition}, at least 1, bound {bound}, at least 0, and every {every}, at least 1 step"
            )
        self.sites, self.loss, self.lost, self.condition = sites, loss, lost, condition
        self.bound, self.start, self.every, self.only = bound, start, every, only

    def begin(self, model: nn.Module) -> None:
        self._model = unwrap(model)
        check_free(self._model)
        self._chosen = trained_sites(self._model, self.sites, self.only, "parametrise")

        def cored(site: Site, layer: Any) -> Cored:
            (largest,) = SVD().limits(site)
            return Cored(layer, site_matrix(self._model, site), max(round(self.start * largest), 1), largest)

        parametrise_(self._model, self._chosen, cored)

    def before_step(self, step: Step) -> None:
        if step.number % self.every:
            return
        for cored, core in self._cores():
            cored.truncate(core, self.lost, self.condition)
            step.optimiser.state.pop(core, None)  # the momentum belongs to the former bases
        self._augment(step)

    def penalty(self) -> Tensor | None:
        if not self.bound:
            return None
        terms = []
        for cored, core in self._cores():
            rank = int(cored.rank)
            S_GBB = core[:, :rank, :rank]
            mean_G = S_GBB.square().sum((1, 2)) / rank
            eye_BB = torch.eye(rank, dtype=core.dtype, device=core.device)
            terms.append((S_GBB.mT @ S_GBB - mean_G[:, None, None] * eye_BB).square().sum())
        return self.bound * torch.stack(terms).sum()

    @contextmanager
    def judging(self, model: nn.Module) -> Iterator[None]:
        kept = [[t.detach().clone() for t in (core, *cored.buffers())] for cored, core in self._cores()]
        self._truncate()
        try:
            yield
        finally:
            with torch.no_grad():
                for (cored, core), values in zip(self._cores(), kept, strict=True):
                    for tensor, value in zip((core, *cored.buffers()), values, strict=True):
                        tensor.copy_(value)

    def finish(self, model: nn.Module) -> Plan:
        ranks = self._truncate()
        plain_(self._model, self._chosen)
        return plan_at(model, self.sites, ranks, f"the last truncation at {self.lost:g}")

    def ranks(self) -> dict[str, int]:
        """The ranks of now, by site."""
        return {site.name: int(cored.rank) for site, (cored, _) in zip(self._chosen, self._cores(), strict=True)}

    def _truncate(self) -> dict[str, int]:
        for cored, core in self._cores():
            cored.truncate(core, self.lost, self.condition)
        return self.ranks()

    def _cores(self) -> list[tuple[Cored, Tensor]]:
        return [_core_of(self._model, site) for site in self._chosen]

    def _augment(self, step: Step) -> None:
        """Widen all bases by the directions in which the loss of the step's batch would move them."""
        cores = [cored for cored, _ in self._cores()]
        bases = [basis for cored in cores for basis in (cored.U_GTR, cored.V_GDR)]
        for basis in bases:
            basis.requires_grad_(True)
        try:
            loss = self.loss(call(self._model, step.inputs), step.labels)
            gradients = torch.autograd.grad(loss, bases)
        finally:
            for basis in bases:
                basis.requires_grad_(False)
        if world() > 1:  # every process must choose the same directions
            for gradient in gradients:
                dist.all_reduce(gradient)
        for cored, U_gradient, V_gradient in zip(cores, gradients[::2], gradients[1::2], strict=True):
            cored.augment(U_gradient, V_gradient)


def _core_of(model: nn.Module, site: Site) -> tuple[Cored, Tensor]:
    parametrized: Any = module_at(model, site.name)
    held = parametrized.parametrizations["weight"]
    return held[0], held.original


def _padded(basis: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(basis, (0, columns - basis.shape[2]))
