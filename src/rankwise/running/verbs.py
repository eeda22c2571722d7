"""What surrounds a call of the library: switches of PyTorch that would change, or spoil, what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from .exclusive import exclusive

P = ParamSpec("P")
R = TypeVar("R")


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function compute the same whatever surrounds its call.

    Verbs of several threads take turns (`exclusive`). `torch.inference_mode` is left inside: tensors made under it can
    neither be trained nor saved for a gradient.

    Args:
        function: the verb.

    Returns:
        The same, which raises a ValueError where the default device is "meta": tensors made there have no values.

    Example:
        >>> with torch.inference_mode():
        ...     verb(torch.is_inference_mode_enabled)()
        False
    """

    alone = exclusive(function)

    @wraps(alone)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.get_default_device().type == "meta":
            raise ValueError(
                'the default device of torch is "meta", where tensors have no values; call '
                'torch.set_default_device("cpu") first, or leave the block `with torch.device("meta")`'
            )
        with _ordinary_tensors():
            return alone(*args, **kwargs)

    return run


@contextmanager
def _ordinary_tensors() -> Iterator[None]:
    # Switching inference mode off switches gradients on, which a caller under no_grad may not want.
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False):
        yield
