"""Factors that are balanced again from time to time, so that gradient steps stay well conditioned.

Letters: G groups, T outputs per group, D inputs per group, R rank.

Source: Khodak, Tenenholtz, Mackey, Fusi, "Initialization and Regularization of Factorized Neural Layers", 2021, arXiv
2105.01029 (spectral factors); the period and the reset of the momentum are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..formats import LowRank
from ..formats.svd import SVD
from ..formats.weights import read, write
from ..linalg.reduced_rank import balance
from ..running.exclusive import exclusive
from ..training.balance import balance_
from ..training.technique import Step, Technique


@torch.no_grad()
@exclusive
def refactorise_(model: nn.Module, optimiser: Optimizer | None = None) -> nn.Module:
    """Give every chain of two factors those of the singular value decomposition, `U = P s^(1/2)`, `V = s^(1/2) Q^T`.

    The network computes the same. Chains of other formats get bonds of equal norms, see `training.balance_`.

    Args:
        model: factorised, changed in place and returned.
        optimiser: forgets its momentum of the changed factors, which belongs to the former ones.

    Raises:
        ValueError: for a model without chains.

    Example:
        >>> from rankwise.preset import build
        >>> model = nn.Sequential(build(nn.Linear(8, 8), "svd", 2))
        >>> first, last = refactorise_(model)[0]
        >>> torch.allclose(first.weight @ first.weight.mT, last.weight.mT @ last.weight, atol=1e-5)
        True
    """
    chains = [part for part in model.modules() if isinstance(part, LowRank)]
    if not chains:
        raise ValueError(f"{type(model).__name__} has no chain of factors; build or factorise it first")
    for chain in chains:
        if isinstance(chain.format, SVD) and len(chain) == 2:
            first, last = chain
            V_GRD = read(first).reshape(getattr(chain, "groups", 1), -1, read(first)[0].numel()).double()
            U_GTR = read(last).reshape(len(V_GRD), -1, V_GRD.shape[1]).double()
            pairs = [_spectral(U_TR, V_RD) for U_TR, V_RD in zip(U_GTR, V_GRD, strict=True)]
            U, V = zip(*pairs, strict=True)
            write(last, torch.stack(U))
            write(first, torch.stack(V))
        else:
            balance_(chain)
        if optimiser is not None:
            for parameter in chain.parameters():
                optimiser.state.pop(parameter, None)
    return model


def _spectral(U_TR: Tensor, V_RD: Tensor) -> tuple[Tensor, Tensor]:
    """The singular value decomposition of `U V`, from decompositions no larger than the rank."""
    (Q_TR, A_RR), (P_DR, B_RR) = torch.linalg.qr(U_TR), torch.linalg.qr(V_RD.mT)
    X_RR, s_R, Y_RR = torch.linalg.svd(A_RR @ B_RR.mT)
    return balance(Q_TR @ X_RR, s_R[:, None] * (Y_RR @ P_DR.mT))


class Refactorised(Technique):
    """`refactorise_` every few steps, as a technique of `Loop`.

    Args:
        every: steps from one to the next.
    """

    def __init__(self, every: int = 200) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1 step")
        self.every = every

    def begin(self, model: nn.Module) -> None:
        self._model = refactorise_(model)

    def after_step(self, step: Step) -> None:
        if (step.number + 1) % self.every == 0:
            refactorise_(self._model, step.optimiser)
