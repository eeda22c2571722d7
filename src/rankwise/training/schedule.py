"""A learning rate that rises, then falls along a cosine."""

from __future__ import annotations

import math

from torch.optim import Optimizer


class Cosine:
    """Set an optimiser's rate by the share t of the training that is done, in steps or in minutes.

        rate(t) = rate * t / warmup                                               t < warmup
        rate(t) = rate * (1 + cos(pi (t - warmup) / (1 - warmup))) / 2            else

    Args:
        optimiser: the rates that its groups have now are the largest ones.
        warmup: share of the training, 0 to below 1.

    Raises:
        ValueError: for a warm-up out of range.

    Example:
        >>> import torch
        >>> optimiser = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> schedule = Cosine(optimiser, warmup=0.2)
        >>> for step in range(5):
        ...     print(f"{schedule(step / 5):.3f}", end=" ")
        0.000 0.100 0.085 0.050 0.015

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2016, arXiv 1608.03983.
    """

    def __init__(self, optimiser: Optimizer, warmup: float = 0.05) -> None:
        check_warmup(warmup)
        self.optimiser, self.warmup = optimiser, warmup
        self.rates = [group["lr"] for group in optimiser.param_groups]

    def __call__(self, share: float) -> float:
        """Set the rates for a share of the training, 0 to 1; returns the first group's."""
        factor = self.factor(share)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = factor * rate
        return factor * self.rates[0]

    def factor(self, share: float) -> float:
        """Share of the largest rate."""
        return ramp(share, self.warmup)


def check_warmup(warmup: float) -> None:
    """Raise a ValueError unless a warm-up is a share of the training."""
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is {warmup}; it is a share of the training, at least 0 and below 1")


def ramp(share: float, warmup: float, falls: bool = True) -> float:
    """Rise from 0 to 1 during the warm-up, then fall to 0 along a cosine, or stay at 1."""
    if share < warmup:
        return share / warmup
    return (1 + math.cos(math.pi * min((share - warmup) / (1 - warmup), 1.0))) / 2 if falls else 1.0
