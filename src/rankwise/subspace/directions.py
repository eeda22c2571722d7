"""Directions of a training from its checkpoints: by principal components, or those that the checkpoints span.

Both come from the Gram matrix of the checkpoints, T x T, in float64: `G = X X^T = U diag(s) U^T` gives orthonormal rows
`P = diag(s)^(-1/2) U^T X`. Rounding in small `s` is taken out by a second step with the Gram matrix of `P` itself.

Letters: T checkpoints, N numbers of a parameter, D directions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..running.guards import unwrap
from .checkpoints import Checkpoints, Source
from .space import Subspace, moving

# Directions with less than this share of the largest energy are rounding, at most of parameters in float32.
LEAST = 1e-12
STARTS = ("first", "last", "mean")
GIGABYTE = 1e9


def dldr(
    model: nn.Module,
    checkpoints: Checkpoints | Source,
    dim: int = 40,
    *,
    start: str = "first",
    dtype: torch.dtype = torch.float32,
    memory_gb: float = 4.0,
) -> Subspace:
    """The principal directions of a training: `max over P of ||(X - mean) P^T||_F` with `P P^T = I`.

    Args:
        model: the network that the checkpoints are of.
        checkpoints: a folder of `Recorder`, files, or state dicts; more of them than `dim`. Several an epoch are better
            than one.
        dim: number of directions.
        start: the checkpoint that the subspace starts from: "first", so that the training is done again; "last"; or
            the "mean" of all.
        dtype: of the directions.
        memory_gb: the most that directions may take: `dim` times the parameters.

    Raises:
        ValueError: for more directions than the checkpoints span, or more memory than allowed.

    Example:
        >>> model = nn.Linear(3, 1, bias=False)
        >>> steps = [{"weight": torch.tensor([[float(t), 2.0 * t, 5.0]])} for t in range(4)]
        >>> space = dldr(model, steps, dim=1)
        >>> (5 ** 0.5 * space.directions["weight"]).abs()
        tensor([[1., 2., 0.]])

    Source: Li, Tan, Huang, Tao, Liu, Huang, "Low Dimensional Trajectory Hypothesis is True: DNNs Can Be Trained in Tiny
    Subspaces", IEEE TPAMI 2022, arXiv 2103.11154.
    """
    if start not in STARTS:
        raise ValueError(f"start is {start!r}; it is one of {', '.join(STARTS)}")
    return _subspace(model, checkpoints, dim, start=start, centred=True, dtype=dtype, memory_gb=memory_gb)


def averaging(
    model: nn.Module,
    checkpoints: Checkpoints | Source,
    dim: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    memory_gb: float = 4.0,
) -> Subspace:
    """The directions of the checkpoints themselves, from their mean: weights of an average that can be trained.

    Every weighted average of the checkpoints lies in the subspace. Checkpoints that depend on others add no direction.

    Args:
        model, checkpoints, dtype, memory_gb: as for `dldr`.
        dim: number of directions; by default all that the checkpoints span.

    Raises:
        ValueError: as `dldr` does.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> some = [{"weight": torch.tensor([[1.0, 0.0]])}] * 2 + [{"weight": torch.tensor([[1.0, 3.0]])}]
        >>> space = averaging(model, some)
        >>> space.dim, space.start["weight"]
        (2, tensor([[1., 1.]]))

    Source: Li, Huang, Tao, Liu, Huang, "Trainable Weight Averaging: Accelerating Training and Improving
    Generalization", 2022, arXiv 2205.13104.
    """
    return _subspace(model, checkpoints, dim, start="mean", centred=False, dtype=dtype, memory_gb=memory_gb)


def _subspace(
    model: nn.Module,
    checkpoints: Checkpoints | Source,
    dim: int | None,
    *,
    start: str,
    centred: bool,
    dtype: torch.dtype,
    memory_gb: float,
) -> Subspace:
    model = unwrap(model)
    many = checkpoints if isinstance(checkpoints, Checkpoints) else Checkpoints(model, checkpoints)
    own = moving(model)

    def rows(name: str) -> Tensor:
        rows_TN = many.rows(name)
        return rows_TN - rows_TN.mean(0) if centred else rows_TN

    gram_TT = sum((X_TN @ X_TN.mT for X_TN in map(rows, own)), torch.zeros(len(many), len(many), dtype=torch.float64))
    energies, U_TT = (part.flip(-1) for part in torch.linalg.eigh(gram_TT))
    spanned = int((energies > LEAST * energies[0]).sum()) if energies[0] > 0 else 0
    if not spanned:
        raise ValueError(f"the {len(many)} checkpoints are all the same; record more of the training")
    dim = spanned if dim is None else dim
    if not 1 <= dim <= spanned:
        raise ValueError(
            f"dim is {dim}; {len(many)} checkpoints span {spanned} directions: choose 1 to {spanned}, or record more"
        )
    numbers = sum(parameter.numel() for parameter in own.values())
    needed = dim * numbers * torch.empty(0, dtype=dtype).element_size() / GIGABYTE
    if needed > memory_gb:
        raise ValueError(
            f"{dim} directions of {numbers:,} parameters take {needed:.1f} GB, more than memory_gb = {memory_gb:g}; "
            "choose a smaller dim, or allow more"
        )
    basis_DT = U_TT[:, :dim].mT / energies[:dim, None].sqrt()
    directions = _orthonormal(basis_DT, rows, list(own), dtype)
    begin = {name: _start(many.rows(name), start).reshape(own[name].shape).to(own[name]) for name in own}
    shares_D = (energies[:dim] / energies.clamp_min(0).sum()).float()
    device = next(iter(own.values())).device
    return Subspace(start=begin, directions=directions, energies=shares_D).to(device)


def _orthonormal(
    basis_DT: Tensor, rows: Callable[[str], Tensor], names: list[str], dtype: torch.dtype
) -> dict[str, Tensor]:
    """`P = L^-1 B X` with `L L^T = (B X) (B X)^T`, parameter by parameter."""
    gram_DD = torch.zeros(len(basis_DT), len(basis_DT), dtype=torch.float64)
    for name in names:
        P_DN = basis_DT @ rows(name)
        gram_DD += P_DN @ P_DN.mT
    basis_DT = torch.linalg.solve_triangular(torch.linalg.cholesky(gram_DD), basis_DT, upper=False)
    return {name: (basis_DT @ rows(name)).to(dtype) for name in names}


def _start(rows_TN: Tensor, start: str) -> Tensor:
    if start == "mean":
        return rows_TN.mean(0)
    return rows_TN[0 if start == "first" else -1]
