"""The same decompositions in tensorly: float32 on its PyTorch backend, at the ranks of one of our formats.

Letters: T outputs, C channels, Q taps, R, S ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rankwise.formats import FORMATS, Ranks
from rankwise.formats.shape import Shape
from rankwise.formats.tensor_train import TensorTrain

# Formats with a counterpart, and what that is called.
PEERS = {
    "tucker2": "partial_tucker",
    "tucker": "tucker",
    "cp": "parafac",
    "cp3": "parafac",
    "tt": "tensor_train",
}
# Alternating sweeps of `parafac` (its own default, and for kernels of more than this many weights).
SWEEPS, LARGE_SWEEPS, LARGE = 100, 20, 500_000


def sweeps_for(weight: Tensor) -> int:
    """How many sweeps `parafac` gets for a kernel."""
    return LARGE_SWEEPS if weight.numel() > LARGE else SWEEPS


def available() -> bool:
    """Whether tensorly is installed; sets its backend."""
    try:
        import tensorly
    except ImportError:
        return False
    tensorly.set_backend("pytorch")
    return True


def decomposer(
    format: str, weight: Tensor, ranks: Ranks, sweeps: int, tolerance: float, seed: int
) -> Callable[[], Any]:
    """A call that decomposes the kernel, T x C x kh x kw, and nothing else.

    Args:
        format: one of `PEERS`.
        weight: kernel.
        ranks: those of our format.
        sweeps, tolerance: of `parafac`; the others run with their defaults.
        seed: of the columns that tensorly fills up with random numbers.
    """
    from tensorly import decomposition

    X = arranged(format, weight).float().contiguous()

    def run() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ranks above the size of a mode, which is meant
            if format == "tucker2":
                return decomposition.partial_tucker(X, rank=list(ranks), modes=[0, 1], random_state=seed)[0]
            if format == "tucker":
                return decomposition.tucker(X, rank=list(ranks), random_state=seed)
            if format == "tt":
                return decomposition.tensor_train(X, rank=[1, *ranks, 1])
            return decomposition.parafac(X, rank=ranks[0], n_iter_max=sweeps, tol=tolerance, random_state=seed)

    return run


def arranged(format: str, weight: Tensor) -> Tensor:
    """The kernel with the modes that a format has."""
    if format in ("tucker2", "cp3"):
        return weight.flatten(2)
    if format != "tt":
        return weight
    letters, groups, sizes = _chain(weight)
    return torch.einsum(f"{letters}->{''.join(groups)}", weight.reshape([sizes[x] for x in letters])).reshape(
        [_count(group, sizes) for group in groups]
    )


def dense(format: str, weight: Tensor, found: Any) -> Tensor:
    """The kernel of a decomposition, in the shape of `weight`, float64."""
    if format in ("tucker2", "tucker"):
        core, factors = found
        tensor = core.double()
        for mode, factor in enumerate(factors):
            tensor = torch.tensordot(tensor.movedim(mode, -1), factor.double(), dims=([-1], [1])).movedim(-1, mode)
        return tensor.reshape(weight.shape)
    if format in ("cp", "cp3"):
        weights, factors = found
        letters = "abcd"[: len(factors)]
        equation = ",".join(f"{letter}r" for letter in letters) + f",r->{letters}"
        factors = [factor.double() for factor in factors]
        weights = torch.ones(factors[0].shape[1]) if weights is None else weights
        return torch.einsum(equation, *factors, weights.double()).reshape(weight.shape)
    tensor = found[0].double()
    for factor in found[1:]:
        tensor = torch.tensordot(tensor, factor.double(), dims=([-1], [0]))
    letters, groups, sizes = _chain(weight)
    tensor = tensor.reshape([sizes[letter] for group in groups for letter in group])
    return torch.einsum(f"{''.join(groups)}->{letters}", tensor).reshape(weight.shape)


def _chain(weight: Tensor) -> tuple[str, tuple[str, ...], dict[str, int]]:
    """Letters of the kernel, those of every mode of our tensor train, and their sizes."""
    train = FORMATS["tt"]
    assert isinstance(train, TensorTrain)
    chain = train.row(Shape(1, weight.shape[0], weight.shape[1], tuple(weight.shape[2:])))
    return chain.outputs + chain.channels + chain.spatial, chain.groups, chain.sizes


def _count(letters: str, sizes: dict[str, int]) -> int:
    result = 1
    for letter in letters:
        result *= sizes[letter]
    return result
