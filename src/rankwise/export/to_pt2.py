"""torch.export files, checked after reading them back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import Stream, replacing
from ..running.arguments import arguments, fresh
from ..running.example import taking_example
from ..running.guards import unwrap
from ..running.verbs import verb
from .axes import DynamicAxes, capture
from .capture import exporting, file_path
from .compare import Arguments, check, first_line, tensors_in
from .dtypes import calibrating, cast, check_dtype, gap

logger = logging.getLogger("rankwise")


@verb
@taking_example
def pt2(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    dynamic_axes: DynamicAxes | None = None,
    tolerance: float = 1e-5,
    dtype: str | None = None,
    calibration: Iterable[Any] | None = None,
) -> Path:
    """Write a network as a `torch.export` file, which runs without the Python source of the network.

    The file is read back and run on the example and at a second size of every open axis, and appears at `path` only
    if the outputs agree. `torch.export.load(path).module()` is the network again, also for `torch.compile` and
    `torch._inductor.aoti_compile_and_package`.

    Args:
        model: a dense or compressed network; it is exported in eval mode and not changed.
        example: a tensor, a tuple (`model(*x)`) or a mapping (`model(**x)`).
        path: the file.
        dynamic_batch: leave the first dimension of the inputs open.
        dynamic_axes: leave further axes open, as for `onnx`.
        tolerance: largest `max |file - torch| / max |torch|` over an output.
        dtype: "fp16" or "bf16", with inputs and outputs in float32; None for the network's own. The change of the
            outputs is logged, not limited.
        calibration: batches of inputs to measure the change of the outputs on; by default the example.

    Returns:
        The path.

    Raises:
        ValueError: if the network cannot be captured, or the outputs disagree.

    Example:
        >>> pt2(small, torch.randn(1, 3, 32, 32), "small.pt2")  # doctest: +SKIP
        PosixPath('small.pt2')
    """
    model, path = unwrap(model), file_path(path, ".pt2")
    check_dtype("pt2", dtype, calibration, model)
    with exporting(model):
        given = arguments(model, example)
        source = model if dtype is None else cast(model, dtype)
        made = capture(source, given, dynamic_batch, dynamic_axes)
        with replacing(path) as written:
            with Stream(written) as file:  # torch's own writer, in C++, would end the process if a write fails
                torch.export.save(made.program, file)  # type: ignore[arg-type]
            run = run_by_torch(written)
            for what, other in made.checks:
                check(run, source, other, tolerance, what)
            if dtype is not None:
                off = gap(model, run, calibrating(model, calibration, given), dtype)
    if dtype is not None:
        logger.info("%s in %s: outputs are off by up to %.2g relative to torch", path.name, dtype, off)
    return path


def run_by_torch(path: Path) -> Callable[[Arguments], list[Tensor]]:
    """The forward of a .pt2 file: a function from arguments of the network's forward to output tensors."""
    try:
        with path.open("rb") as file:
            module = torch.export.load(file).module()
    except RuntimeError as error:
        raise ValueError(
            f"torch cannot read the exported file back ({first_line(error)}); let forward take and return only tensors"
        ) from error

    def run(given: Arguments) -> list[Tensor]:
        args, kwargs = fresh(given)
        with torch.no_grad():
            return [each.cpu() for each in tensors_in(module(*args, **kwargs))]

    return run
