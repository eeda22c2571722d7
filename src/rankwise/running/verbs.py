"""Shield a call of the library from switches of PyTorch that would change its results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from .exclusive import exclusive

P = ParamSpec("P")
R = TypeVar("R")


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function compute the same whatever surrounds its call.

    Verbs of several threads take turns (`exclusive`). Inside, `torch.inference_mode` is off: tensors made under it can
    neither be trained nor saved for a gradient.

    Args:
        function: raises a ValueError where the default device is "meta", whose tensors have no values.

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
        # inference_mode(False) also switches gradients on, which a caller under no_grad does not want.
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
            return alone(*args, **kwargs)

    return run
