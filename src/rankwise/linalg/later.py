"""A metric that is made when it is first asked for something.

Letters: see `metric`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from .metric import Metric


class Later(Metric):
    """The metric that `make` returns, made when it is first needed.

    A fit may need no product with Sigma, if a curve has decomposed the weight before; then Sigma is never made.

    Args:
        make: returns the metric.
        dim: D.
        device: of its tensors.

    Example:
        >>> from rankwise.linalg.metric import Identity
        >>> Later(lambda: Identity(2), 2, torch.device("cpu")).energy(torch.ones(3, 2))
        6.0
    """

    def __init__(self, make: Callable[[], Metric], dim: int, device: torch.device) -> None:
        self._make = make
        self.dim = dim
        self.device = device

    def concrete(self) -> Metric:
        return self.made

    @cached_property
    def made(self) -> Metric:
        """The metric itself."""
        return self._make()

    def times(self, M_TD: Tensor) -> Tensor:
        return self.made.times(M_TD)

    def dense(self) -> Tensor:
        return self.made.dense()

    def marginal(self, sizes: Sequence[int], held: Sequence[int]) -> Tensor:
        return self.made.marginal(sizes, held)

    def fold(self, B_CR: Tensor, taps: int) -> Metric:
        return self.made.fold(B_CR, taps)

    def nested_projection(self, target_TD: Tensor) -> Tensor:
        return self.made.nested_projection(target_TD)

    def inner(self, M_TD: Tensor) -> Tensor:
        return self.made.inner(M_TD)

    def spread(self, B_CR: Tensor, M_TD: Tensor, taps: int) -> Tensor:
        return self.made.spread(B_CR, M_TD, taps)

    def energy(self, M_TD: Tensor) -> float:
        return self.made.energy(M_TD)

    def to(self, dtype: torch.dtype) -> Metric:
        return self.made.to(dtype)
