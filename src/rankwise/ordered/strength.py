"""Search the strength of the group lasso: the largest that an aim allows.

Source: Horvath et al., "Maestro", 2023, arXiv 2308.14929, algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

Trained = TypeVar("Trained")


def search_strength(
    train: Callable[[float], tuple[Trained, float]], start: float, *, aim: float | None = None, tries: int = 8
) -> tuple[float, Trained, float]:
    """Start large and halve until the aim is met, or until halving helps no more.

    Args:
        train: trains at a strength and returns its result and a loss on held-out data. A ValueError, as from a
            strength that prunes everything, is a loss of infinity.
        start: the first strength, above 0.
        aim: the largest loss that is good enough; None goes on while the loss falls.
        tries: trainings at most.

    Returns:
        The strength, its result and its loss.

    Raises:
        ValueError: if no try ended with a network, with the last reason.

    Example:
        >>> search_strength(lambda strength: ("net", strength**2), 1.0, aim=0.1)
        (0.25, 'net', 0.0625)
    """
    if not 0 < start < math.inf or tries < 1:
        raise ValueError(f"start is {start}, above 0, and tries {tries}, at least 1")
    best: tuple[float, Trained, float] | None = None
    reason: ValueError | None = None
    for number in range(tries):
        strength = start / 2**number
        try:
            trained, loss = train(strength)
        except ValueError as error:
            reason = error
            continue
        if best is not None and aim is None and not loss < best[2]:
            return best
        if best is None or loss < best[2]:
            best = strength, trained, loss
        if aim is not None and loss <= aim:
            return strength, trained, loss
    if best is None:
        raise ValueError(f"no strength from {start:g} to {start / 2 ** (tries - 1):g} leaves a network: {reason}")
    return best
