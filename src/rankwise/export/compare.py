"""Compare the outputs of an exported file with those of its network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..running.arguments import Arguments, fresh


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a nested value, in the order of a program's inputs and outputs."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


# What helps where a file or a network does not run at other sizes than the example's.
FIXED_BATCH = "export with dynamic_batch=False"


def outputs(model: nn.Module, given: Arguments, what: str, fix: str = FIXED_BATCH) -> list[Tensor]:
    """The outputs of a network on the CPU.

    Raises:
        ValueError: if the network does not run.
    """
    args, kwargs = fresh(given)
    try:
        with torch.no_grad():
            return [leaf.cpu() for leaf in tensors_in(model(*args, **kwargs))]
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} itself does not run at {what} ({first_line(error)}); {fix}"
        ) from error


def check(
    run: Callable[[Arguments], list[Tensor]],
    model: nn.Module,
    given: Arguments,
    tolerance: float,
    what: str,
    fix: str = FIXED_BATCH,
) -> None:
    """Refuse an exported file whose outputs differ from the network's.

    Args:
        run: forward of the file.
        model: the network.
        given: arguments of the forward.
        tolerance: largest `max |made - exact| / max |exact|` over an output.
        what: describes the arguments, for messages.
        fix: what to do where the file does not run on them.

    Raises:
        ValueError: if the file does not run, or saying which output differs, and by how much.
    """
    exact = outputs(model, given, what, fix)
    try:
        made = run(given)
    except Exception as error:
        raise ValueError(f"the exported file does not run at {what} ({first_line(error)}); {fix}") from error
    _compare(made, exact, tolerance, what, fix)


def _compare(made: Sequence[Tensor], exact: Sequence[Tensor], tolerance: float, what: str, fix: str) -> None:
    if [each.shape for each in exact] != [each.shape for each in made]:
        raise ValueError(
            f"at {what} the exported file gives outputs of shapes {[list(each.shape) for each in made]}, and torch "
            f"{[list(each.shape) for each in exact]}; {fix}"
        )
    for index, (one, other) in enumerate(zip(made, exact, strict=True)):
        gap = difference(one, other)
        if not gap <= tolerance:
            raise ValueError(
                f"at {what} output {index} of the exported file is off by {gap:.2g} relative to torch, tolerance is "
                f"{tolerance:g}; export model.float() if it is half precision, or accept it with a larger tolerance"
            )


def difference(made: Tensor, exact: Tensor) -> float:
    """`max |made - exact| / max |exact|`; equal infinities are equal, and so are two NaN."""
    made, exact = made.double(), exact.double()
    same = (made == exact) | (made.isnan() & exact.isnan())
    gap = torch.where(same, 0.0, (made - exact).abs())
    scale = float(torch.where(exact.isfinite(), exact.abs(), 0.0).amax()) if exact.numel() else 0.0
    return (float(gap.amax()) if gap.numel() else 0.0) / (scale or 1.0)


def largest(differences: Iterable[float]) -> float:
    """The largest difference: NaN if one is NaN, 0 without any."""
    return float(torch.tensor([0.0, *differences], dtype=torch.float64).amax())


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty, else the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
