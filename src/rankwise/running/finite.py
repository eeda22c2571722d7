"""NaN and infinity: whether a network gives them, and which of its modules gives them first."""

from __future__ import annotations

import logging
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch
from torch import nn

from .calling import DataError, call, tensor_leaves
from .pristine import pristine

logger = logging.getLogger("rankwise")


def is_finite(output: Any) -> bool:
    """Whether a network's output has neither NaN nor infinity; minus infinity is allowed, as the score of "never".

    Example:
        >>> is_finite((torch.tensor([1.0, -torch.inf]), "text")), is_finite(torch.tensor(torch.nan))
        (True, False)
    """
    leaves = [leaf for leaf in tensor_leaves(output) if leaf.is_floating_point()]
    return not any(bool((leaf.isnan() | (leaf == torch.inf)).any()) for leaf in leaves)


def culprit(model: nn.Module, batch: Any) -> str:
    """A sentence that names the first module whose output for a batch is not finite; "" where all are finite.

    Args:
        model: run once and left as it was.

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
        with suppress(ValueError):  # the modules up to the error have been seen
            call(model, batch)
    if not found:
        return ""
    name = f"{found[0]!r} ({type(model.get_submodule(found[0])).__name__})" if found[0] else "the model itself"
    return f". The first to give them is {name}"


class Blame:
    """Context around work on batches that names the first module with NaN or infinity in its output.

    An error about the data names it. Outputs that are not finite while the inputs of all layers are do not harm
    statistics: they are logged as a warning.

    Example:
        >>> with Blame(nn.Linear(2, 2)) as blame:
        ...     blame.batch = 0, torch.ones(1, 2)
        ...     blame.look(torch.ones(1, 2))
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.batch: tuple[int, Any] | None = None  # the current one, with its number
        self._odd: tuple[int, Any] | None = None

    def look(self, output: Any) -> None:
        """Take the network's output for the current batch."""
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
