"""ONNX files, checked in onnxruntime before they appear."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import replacing_several
from ..running.arguments import arguments
from ..running.example import taking_example
from ..running.guards import unwrap
from ..running.state import state_of
from ..running.verbs import verb
from .axes import Capture, DynamicAxes, capture
from .cache import Cached, capture_cached
from .capture import exporting, file_path, root, site_of
from .check import program as run_by_onnxruntime
from .compare import check
from .dtypes import calibrating, check_dtype, gap
from .extras import require
from .onnx_dtypes import reduced

logger = logging.getLogger("rankwise")
# A protobuf file can have 2 GB; above this the weights go to a file beside it.
LARGEST_FILE = 1_900_000_000
# Names of the inputs and of the outputs of a file; by default the exporter's.
Names = tuple[list[str], list[str]]


@verb
@taking_example
def onnx(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    dynamic_axes: DynamicAxes | None = None,
    tolerance: float = 1e-5,
    dtype: str | None = None,
    calibration: Iterable[Any] | None = None,
    cache: bool = False,
) -> Path:
    """Write a network as an ONNX file with the same outputs.

    The file is run in onnxruntime on the example and at a second size of every open axis, and appears at `path` only
    if the outputs agree.

    Args:
        model: a dense or compressed network; it is exported in eval mode and not changed.
        example: a tensor, a tuple (`model(*x)`) or a mapping (`model(**x)`).
        path: the file. Weights beyond 1.9 GB go to `PATH.data` beside it.
        opset: ONNX operator set, None for the exporter's own.
        dynamic_batch: leave the first dimension of the inputs open.
        dynamic_axes: leave further axes open: "auto", all that the network takes at another size, such as lengths and
            picture sizes; "none"; or axes by input name, {"input_ids": [1]}. By default "auto" if the batch is open.
            What is open and what stays closed is logged.
        tolerance: largest `max |onnx - torch| / max |torch|` over an output, before numbers are rounded to `dtype`.
        dtype: "fp16"; "int8", weights and activations by onnxruntime's quantiser; "int8-dynamic", linear layers only.
            None for the network's own. The change of the outputs is logged, not limited.
        calibration: batches of inputs, for the ranges of "int8" and to measure the change of the outputs.
        cache: of a causal language model, also read and write the cache of keys and values: inputs `input_ids`,
            `attention_mask`, `position_ids` if the network takes them, `past_key_values.0.key` and so on; outputs
            `logits`, `present.0.key` and so on. New tokens and those in the cache, none at first, may be of any number.

    Returns:
        The path.

    Raises:
        ValueError: naming the operator and the layer that cannot be exported, or if the outputs disagree.
        ImportError: if the extra `[onnx]` is not installed.

    Example:
        >>> onnx(small, torch.randn(1, 3, 32, 32), "small.onnx")  # doctest: +SKIP
        PosixPath('small.onnx')
    """
    require("ONNX export", "onnx", "onnx", "onnxruntime", "onnxscript")
    model, path = unwrap(model), file_path(path, ".onnx")
    if any(tensor.dtype == torch.bfloat16 for tensor in model.state_dict().values() if isinstance(tensor, Tensor)):
        raise ValueError("onnxruntime runs no bfloat16 on the CPU, so the file cannot be checked; export model.float()")
    check_dtype("onnx", dtype, calibration, model)
    if cache and (calibration is not None or dynamic_axes is not None):
        what = "dynamic_axes" if calibration is None else "calibration"
        raise ValueError(f"{what} is for networks without cache; with it tokens are open, and int8-dynamic needs none")
    if dtype is not None and state_of(model).bytes > LARGEST_FILE:
        raise ValueError(f"dtype {dtype} is for networks of up to {LARGEST_FILE:,} bytes; leave it out for this one")
    with exporting(model):
        given = arguments(model, example)
        names = None
        if cache:
            model = Cached(model, given)
            names, made = model.names, capture_cached(model, dynamic_batch)
            given = made.checks[1][1]
        else:
            made = capture(model, given, dynamic_batch, dynamic_axes)
        with replacing_several(path) as folder:
            written = folder / path.name
            try:
                _write(model, made, written, opset, tolerance, names)
            except ValueError as error:
                if not made.further or dynamic_axes not in (None, "auto"):
                    raise
                logger.info("no axis except the batch is open: %s", error)
                _write(model, capture(model, given, dynamic_batch, "none"), written, opset, tolerance)
            if dtype is not None:
                batches = calibrating(model, calibration, given)
                reduced(written, dtype, batches)
                off = gap(model, run_by_onnxruntime(written), batches, dtype)
    if dtype is not None:
        logger.info("%s in %s: outputs are off by up to %.2g relative to torch", path.name, dtype, off)
    return path


def _write(
    model: nn.Module, made: Capture, path: Path, opset: int | None, tolerance: float, names: Names | None = None
) -> None:
    """Write a captured network, and check the file at every size."""
    _convert(made.program, path, opset, state_of(model).bytes > LARGEST_FILE, names)
    run = run_by_onnxruntime(path)
    for what, given in made.checks:
        check(run, model, given, tolerance, what)


def _convert(
    program: torch.export.ExportedProgram, path: Path, opset: int | None, external: bool, names: Names | None
) -> None:
    import onnx

    try:
        translations: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.index_select.default: _select}
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            verbose=False,
            custom_translation_table=translations,
            input_names=names and names[0],
            output_names=names and names[1],
        )
        assert converted is not None
        converted.save(str(path), external_data=external)
    except OSError:  # not the network's fault
        raise
    except Exception as error:
        operator = _operator(error)
        where = f" in {site_of(program, operator)}" if operator else ""
        raise ValueError(
            f"ONNX has no translation for {operator or 'an operator'}{where}: {root(error)}; "
            f"compute it with other operators, or try another opset"
        ) from error
    got = {each.domain: each.version for each in onnx.load(str(path), load_external_data=False).opset_import}[""]
    if opset is not None and got != opset:
        raise ValueError(f"opset is {opset}, but the network can only be written with opset {got}; ask for {got}")


def _select(self: Any, dim: int, index: Any) -> Any:
    """`index_select`; along the last dimension by `GatherElements`, as onnxruntime's `Gather` is slow there."""
    from onnxscript import opset18

    op: Any = opset18
    rank = len(self.shape)
    if rank < 2 or dim % rank != rank - 1:
        return op.Gather(self, index, axis=dim)
    others = op.Concat(op.Shape(self, start=0, end=rank - 1), op.Constant(value_ints=[1]), axis=0)
    return op.GatherElements(self, op.Expand(index, others), axis=rank - 1)


def _operator(error: BaseException | None) -> str | None:
    while error is not None:
        if found := re.search(r"op='([\w.:]+)'", str(error)):
            return found[1]
        error = error.__cause__
    return None
