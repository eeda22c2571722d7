"""Progressive shrinking: components without importance leave their layers for good.

Letters: R components.

Source: Horvath et al., "Maestro", 2023, arXiv 2308.14929, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .hierarchical_lasso import factors_of
from .layer import Ordered, counts, ordered_layers


@torch.no_grad()
def importance(layer: Ordered) -> Tensor:
    """`||U[:, b:]||_F ||V[b:]||_F` of the active components b, R; it never grows with b."""
    U_MR, V_MR = factors_of(layer)
    squares = [factor.double().square().sum(0).flip(0).cumsum(0).flip(0) for factor in (U_MR, V_MR)]
    return (squares[0] * squares[1]).sqrt()


def shrink_(model: nn.Module, threshold: float = 1e-7) -> dict[str, int]:
    """Leave the components whose importance is at least the threshold, and one in every layer.

    Args:
        model: with ordered layers, changed in place.
        threshold: above 0.

    Returns:
        The components that are left, by layer.

    Raises:
        ValueError: for a threshold that is not above 0, or if no layer has anything left, which one component each
            would only hide; nothing is changed then.

    Example:
        >>> import rankwise as rw
        >>> from rankwise.ordered import order_
        >>> model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(1, 8)
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.randn(8, 2) @ torch.randn(2, 8))
        >>> shrink_(order_(model, rw.find(model, x)), 1e-4)
        {'0': 2}
    """
    if not 0 < threshold < float("inf"):
        raise ValueError(f"the threshold is {threshold}; it must be above 0")
    layers = ordered_layers(model)
    left = {name: int((importance(layer) >= threshold).sum()) for name, layer in layers.items()}
    if not any(left.values()):
        raise ValueError(
            f"no component of any layer has an importance of {threshold:g}: the group lasso prunes everything; choose "
            "a smaller strength"
        )
    for name, layer in layers.items():
        layer.keep(max(left[name], 1))
    return counts(model)
