"""How far factorised layers are from the dense ones, in their weights and in their outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..formats import LowRank
from ..formats.weights import read
from ..network.replacing import module_at
from ..running.calling import call, tensors_in
from ..running.guards import unwrap
from ..running.pristine import evaluating, rows_kept
from ..training.modes import recorded


class Dissimilarity:
    """`mean_i mean (W_i - V_i)^2 + mean_i mean (O_i - D_i)^2` over the factorised layers i.

    `W_i` and `V_i` are the weights of the dense and the factorised layer, `O_i` and `D_i` their outputs, each in its
    own network: the factorised layers see the errors before them. All are means over the numbers, so that no layer
    counts for its size. The dense network runs in eval mode without gradients.

    Args:
        dense: the network that the other was made from.
        small: the factorised network.

    Raises:
        ValueError: if `small` has no factorised layer, or `dense` has no layer of that name.

    Example:
        >>> import rankwise as rw
        >>> dense, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)), torch.randn(8, 16)
        >>> small, _ = rw.compress(dense, [x], keep={"params": 0.5})
        >>> outputs, distance = Dissimilarity(dense, small)(x)
        >>> float(distance) > 0
        True

    Source: Aghababaei-Harandi and Amini, "Unified Framework for Neural Network Compression via Decomposition and
    Optimal Rank Selection", 2024, arXiv 2409.03555.
    """

    def __init__(self, dense: nn.Module, small: nn.Module) -> None:
        self.dense, self.small = unwrap(dense), unwrap(small)
        self.names = [name for name, module in self.small.named_modules() if isinstance(module, LowRank)]
        if not self.names:
            raise ValueError(f"{type(self.small).__name__} has no factorised layer; factorise it first")
        for name in self.names:
            module_at(self.dense, name)

    def __call__(self, inputs: Any) -> tuple[Any, Tensor]:
        """The outputs of the small network for a batch, and the distance."""
        with torch.no_grad(), evaluating(self.dense), rows_kept(self.dense), recorded(self.dense, self.names) as wanted:
            call(self.dense, inputs)
        with recorded(self.small, self.names) as got:
            outputs = call(self.small, inputs)
        weights, answers = [], []
        for name in self.names:
            W, V = read(module_at(self.dense, name)).detach(), read(module_at(self.small, name))
            weights.append((W - V).square().mean())
            pairs = zip(tensors_in(list(got[name])), tensors_in(list(wanted[name])), strict=True)
            answers += [(ours - theirs).square().mean() for ours, theirs in pairs]
        return outputs, torch.stack(weights).mean() + torch.stack(answers).mean()
