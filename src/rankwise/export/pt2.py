"""torch.export files, checked after reading them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..arguments import arguments
from ..batches import pristine, samples_in
from ..files import replacing
from ..guards import unwrap
from .capture import captured, file_path, quiet, resized
from .compare import Arguments, compare, first_line, outputs, tensors_in


def pt2(
    model: nn.Module,
    example_input: Any,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    tolerance: float = 1e-5,
) -> Path:
    """Write a network as a file of `torch.export`, which runs without the Python source of the network.

    The file is read back and run on the example, and with `dynamic_batch` on another batch size too, and appears at
    `path` only when it agrees. `torch.export.load(path).module()` is the network again, for `torch.compile` or
    `torch._inductor.aoti_compile_and_package` as well.

    Args:
        model: a dense or compressed network; it is exported in eval mode and not changed.
        example_input: a tensor, a tuple (`model(*x)`) or a mapping (`model(**x)`).
        path: the file.
        dynamic_batch: leave the first dimension of the inputs open.
        tolerance: largest `max |file - torch| / max |torch|` over an output.

    Returns:
        The path.

    Raises:
        ValueError: if the network cannot be captured, or the outputs disagree.

    Example:
        >>> pt2(small, torch.randn(1, 3, 32, 32), "small.pt2")  # doctest: +SKIP
        PosixPath('small.pt2')
    """
    model, path = unwrap(model), file_path(path, ".pt2")
    with pristine(model), quiet():
        example = arguments(model, example_input)
        size = samples_in(pytree.tree_leaves(example))
        program = captured(model, example, dynamic_batch)
        with replacing(path) as written:
            with written.open("wb") as file:
                torch.export.save(program, file)
            again = _read(written)
            for batch in (size, size + 2) if dynamic_batch else (size,):
                given, what = resized(example, batch), f"batch size {batch}"
                exact = outputs(model, given, what)
                compare(_run(again, given, what), exact, tolerance, what)
    return path


def _read(path: Path) -> nn.Module:
    with path.open("rb") as file:
        module: nn.Module = torch.export.load(file).module()
    return module


def _run(module: nn.Module, given: Arguments, what: str) -> list[torch.Tensor]:
    args, kwargs = given
    try:
        with torch.no_grad():
            return [each.cpu() for each in tensors_in(module(*args, **kwargs))]
    except Exception as error:
        raise ValueError(
            f"the exported file does not run at {what} ({first_line(error)}); export with dynamic_batch=False"
        ) from error
