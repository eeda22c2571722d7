"""Numbers that are none: whether a network gives them, and which of its modules is the first to."""

from __future__ import annotations

import logging
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .calling import DataError, call
from .pristine import pristine

logger = logging.getLogger("rankwise")


def is_finite(output: Any) -> bool:
    """Whether what a network returned holds neither NaN nor infinity; minus infinity is a score that says never.

    Example:
        >>> is_finite((torch.tensor([1.0, -torch.inf]), "text")), is_finite(torch.tensor(torch.nan))
        (True, False)
    """
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return not any(bool((leaf.isnan() | (leaf == torch.inf)).any()) for leaf in leaves)


def culprit(model: nn.Module, batch: Any) -> str:
    """A sentence about the first module of a network whose output for a batch is not finite; "" where all are.

    Args:
        model: left as it was; it is run once.
        batch: what it is called with.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Softmax(1))
        >>> _ = net[0].weight.data.fill_(float("inf"))
        >>> culprit(net, torch.ones(1, 2))
        ". The first to give them is '0' (Linear)"
    """
    found: list[str] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        if not found and not is_finite(output):
            found.append(names[module])

    names = {module: name for name, module in model.named_modules()}
    with pristine(model):
        for module in names:
            module.register_forward_hook(look)
        with suppress(ValueError):  # what it was like up to there is known
            call(model, batch)
    if not found:
        return ""
    name = f"{found[0]!r} ({type(model.get_submodule(found[0])).__name__})" if found[0] else "the model itself"
    return f". The first to give them is {name}"


class Blame:
    """Says after the work on batches which module was the first to give numbers that are none.

    An error about the data names it. Outputs that are not finite while the inputs of all layers are do no harm to
    statistics; they are warned of.

    Args:
        model: the network that runs.

    Example:
        >>> with Blame(nn.Linear(2, 2)) as blame:
        ...     blame.batch = 0, torch.ones(1, 2)
        ...     blame.look(torch.ones(1, 2))
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.batch: tuple[int, Any] | None = None  # number and batch that the network runs on
        self._odd: tuple[int, Any] | None = None

    def look(self, output: Any) -> None:
        """Take what the network returned for the batch."""
        if self._odd is None and not is_finite(output):
            self._odd = self.batch

    def __enter__(self) -> Blame:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, DataError) and self.batch is not None:
            if words := culprit(self.model, self.batch[1]):
                raise DataError(f"{error}{words}") from error
        elif error is None and self._odd is not None:
            index, batch = self._odd
            logger.warning("batch %d: the network's outputs hold NaN or infinity%s", index, culprit(self.model, batch))
