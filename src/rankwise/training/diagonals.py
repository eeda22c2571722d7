"""Train two diagonals for each chain: almost no parameters, merged into the chain afterwards.

`y = (B + diag(b) B_K diag(d)) A x` with the chain's factors B (outputs x rank) and A, `B_K` some columns of B in their
places, d of their number and b of the outputs: `(B A + diag(b) B_K diag(d) A_K) x`, and so a change of B alone.

Letters: T outputs, R rank, K chosen columns.

Source: Ji, Xiang, Li, Chen, Liu, Zhang, "Adaptive Feature-based Low-Rank Compression of Large Language Models via
Bayesian Optimization", 2024, arXiv 2405.10616.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..layers.low_rank import LowRank
from ..running.exclusive import exclusive
from ..running.guards import unwrap

FIRST = 0.1  # of `d`; `b` begins at 0, so that nothing changes at first


@exclusive
def scale_diagonals_(model: nn.Module, rank: int = 256, seed: int = 0) -> list[nn.Parameter]:
    """Put trainable diagonals into all chains of two linear layers, in place; everything else stays as it is.

    Args:
        model: with chains of svd of linear layers.
        rank: columns that are chosen at random in each chain, at most; all of a smaller chain.
        seed: of the choice.

    Returns:
        The diagonals, to give to an optimiser alone. All other parameters are frozen until `merge_diagonals_`.

    Raises:
        ValueError: if there is no such chain, or they have diagonals already.

    Example:
        >>> import rankwise as rw
        >>> model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8)
        >>> small = rw.factorise(model, rw.choose(model, rw.find(model, x), keep={"params": 0.8}, metric="weight"),
        ...                      rw.find(model, x))
        >>> before, parameters = small(x), scale_diagonals_(small)
        >>> [len(each) for each in parameters], torch.equal(small(x), before)
        ([8, 3], True)
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; at least 1 is needed")
    layers = _last_layers(model)
    if not layers:
        raise ValueError(
            f"{type(unwrap(model)).__name__} has no chain of two linear layers; factorise it with svd first"
        )
    if any(parametrize.is_parametrized(layer, "weight") for layer in layers):
        raise ValueError(
            "the chains have diagonals already, or other constraints; merge_diagonals_ or release them first"
        )
    generator = torch.Generator().manual_seed(seed)
    unwrap(model).requires_grad_(False)
    found: list[nn.Parameter] = []
    for layer in layers:
        outputs, columns = layer.weight.shape
        picked_K = torch.randperm(columns, generator=generator)[:rank].sort().values
        scaled = _Scaled(outputs, picked_K.to(layer.weight.device), layer.weight)
        parametrize.register_parametrization(layer, "weight", scaled)
        found += [scaled.b_T, scaled.d_K]
    return found


@exclusive
def merge_diagonals_(model: nn.Module) -> nn.Module:
    """Multiply the diagonals into the factors, which are plain parameters again; all parameters can be trained."""
    for layer in _last_layers(model):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return unwrap(model).requires_grad_(True)


def _last_layers(model: nn.Module) -> list[nn.Linear]:
    """The second layers of all chains of two linear layers, each once."""
    chains = [chain for chain in unwrap(model).modules() if isinstance(chain, LowRank) and len(chain) == 2]
    pairs = [chain[1] for chain in chains if isinstance(chain[0], nn.Linear) and isinstance(chain[1], nn.Linear)]
    return list({id(layer): layer for layer in pairs if isinstance(layer, nn.Linear)}.values())


class _Scaled(nn.Module):
    """`B + diag(b) B_K diag(d)`, the columns K in their places."""

    def __init__(self, outputs: int, picked_K: Tensor, like: Tensor) -> None:
        super().__init__()
        self.picked_K = picked_K
        self.b_T = nn.Parameter(like.new_zeros(outputs))
        self.d_K = nn.Parameter(like.new_full((len(picked_K),), FIRST))

    def forward(self, B_TR: Tensor) -> Tensor:
        added_TK = self.b_T[:, None] * B_TR[:, self.picked_K] * self.d_K
        return B_TR.index_add(1, self.picked_K, added_TK)
