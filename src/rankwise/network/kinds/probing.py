"""Ask a network how its layers work together: run it again with changed inputs and outputs of some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ...layers.kinds import is_convolution, site_kind
from ...running.calling import tensor_leaves
from ...running.exclusive import own_thread
from ..forward import Forward

# A method that registers a hook, and the hook.
Hook = tuple[Callable[..., Any], Callable[..., Any]]
# How much results may differ, relative to the largest.
CLOSE = 1e-3


def is_free(forward: Forward, name: str) -> bool:
    """Whether a layer is linear, is called once, shares its weight with none and can be replaced."""
    layer: Any = forward.model.get_submodule(name)
    group = forward.group_of(name)
    return (
        site_kind(layer) not in (None, "embedding")
        and not is_convolution(site_kind(layer))
        and group is not None
        and len(group) == 1
        and len(forward.record.calls.get(name, ())) == 1
        and id(layer) not in forward.unfit
        and layer.weight.is_floating_point()
    )


def run(forward: Forward, hooks: Sequence[Hook]) -> list[Tensor]:
    """The outputs of the network on its example, with hooks."""
    with ExitStack() as stack, torch.no_grad():
        for register, hook in hooks:
            stack.callback(register(own_thread(hook)).remove)
        return tensor_leaves(forward.again())


def same(
    forward: Forward, one: Sequence[Hook], other: Sequence[Hook], seen: Sequence[Tensor], also: Sequence[Tensor]
) -> bool:
    """Whether the network gives the same with one set of hooks as with the other.

    What the hooks see is compared, too: what a block adds to a network may be too little to be seen in its outputs.

    Args:
        one, other: the hooks.
        seen, also: lists that they append what they see to.
    """
    wanted = [*run(forward, one), *seen]
    try:
        given = [*run(forward, other), *also]
    except Exception:  # whatever a foreign forward says about other sizes: it does not work
        return False
    return len(wanted) == len(given) and all(map(_close, wanted, given))


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    one, other = one.double(), other.double()
    return bool((one - other).abs().max() <= CLOSE * one.abs().max()) if one.numel() else True
