"""ExecuTorch files for phones and small devices, checked in ExecuTorch before they appear."""

from __future__ import annotations

import logging
import operator
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..files import replacing
from ..running.arguments import arguments
from ..running.calling import samples_in
from ..running.copying import copied
from ..running.example import taking_example
from ..running.guards import unwrap
from ..running.verbs import verb
from .capture import captured, exporting, file_path, layer_of, quiet, root, site_of
from .check_executorch import forward as run_by_executorch
from .compare import check
from .dtypes import calibrating, cast, check_dtype, gap
from .executorch_int8 import rounded
from .extras import require

logger = logging.getLogger("rankwise")
# Operators of portable kernels that are named in the log.
SHOWN = 4


@verb
@taking_example
def executorch(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    tolerance: float = 1e-4,
    dtype: str | None = None,
    calibration: Iterable[Any] | None = None,
) -> Path:
    """Write a network as an ExecuTorch file with the same outputs.

    XNNPACK runs what it can; portable kernels, which are slow, run the rest. Both are logged. The file is run in
    ExecuTorch on the example, and appears at `path` only if the outputs agree. It takes inputs of the example's shapes,
    batch size included: memory is planned when the file is made.

    Args:
        model: a dense or compressed network; it is exported in eval mode and not changed.
        example: a tensor, a tuple (`model(*x)`) or a mapping (`model(**x)`).
        path: the file.
        tolerance: largest `max |executorch - torch| / max |torch|` over an output; it holds without a `dtype`.
        dtype: "fp16"; "int8", weights and activations by XNNPACK's quantiser; "int8-dynamic", linear layers only.
            None for the network's own. The change of the outputs is logged, not limited.
        calibration: batches of inputs, for the ranges of "int8" and to measure the change of the outputs.

    Returns:
        The path.

    Raises:
        ValueError: naming the operator and the layer that cannot be lowered, or if the outputs disagree.
        ImportError: if the extra `[executorch]` is not installed.

    Example:
        >>> executorch(small, torch.randn(1, 3, 32, 32), "small.pte")  # doctest: +SKIP
        PosixPath('small.pte')
    """
    require("ExecuTorch export", "executorch", "executorch")
    model, path = unwrap(model), file_path(path, ".pte")
    check_dtype("executorch", dtype, calibration, model)
    if any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers())):
        model = copied(model).cpu()
    with exporting(model):
        given = arguments(model, example)
        batches = calibrating(model, calibration, given)
        if dtype in ("int8", "int8-dynamic"):
            program = rounded(captured(model, given, dynamic_batch=False), given, batches, dtype)
        else:
            program = captured(model if dtype is None else cast(model, dtype), given, dynamic_batch=False)
        made, told = lowered(program)
        with replacing(path) as written:
            with written.open("wb") as file:
                made.write_to_file(file)
            run = run_by_executorch(written)
            if dtype is None:
                what = f"batch size {samples_in(pytree.tree_leaves(given))}"
                check(run, model, given, tolerance, what, "export another network, or to ONNX")
            else:
                off = gap(model, run, batches, dtype)
    logger.info(told)
    if dtype is not None:
        logger.info("%s in %s: outputs are off by up to %.2g relative to torch", path.name, dtype, off)
    return path


def lowered(program: torch.export.ExportedProgram) -> tuple[Any, str]:
    """The program for ExecuTorch, and a sentence that says what XNNPACK runs, and what portable kernels.

    Raises:
        ValueError: naming the operator and the layer that cannot be lowered.
    """
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.runtime import Runtime

        try:
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            told = _told(edge.exported_program())
            made = edge.to_executorch()
        except Exception as error:
            found = re.search(r"\baten(\.|::)(\w+)", str(error))
            raise ValueError(_refusal(program, f"aten.{found[2]}" if found else None, root(error))) from error
    there = Runtime.get().operator_registry.operator_names
    for plan in made.executorch_program.execution_plan:
        for kernel in plan.operators:
            if f"{kernel.name}.{kernel.overload}".rstrip(".") not in there:
                name = kernel.name.replace("::", ".")
                raise ValueError(_refusal(program, name, "the runtime has no kernel for it"))
    return made, told


def _refusal(program: torch.export.ExportedProgram, name: str | None, reason: str) -> str:
    where = f"{name} in {site_of(program, name)}" if name else "an operator"
    return f"ExecuTorch cannot run {where}: {reason}; compute it with other operators, or export to ONNX"


def _told(program: torch.export.ExportedProgram) -> str:
    """What XNNPACK runs of a lowered program, and what portable kernels run."""
    parts, inside = 0, 0
    portable: Counter[str] = Counter()
    for node in program.graph.nodes:
        if node.op == "get_attr" and hasattr(part := getattr(program.graph_module, node.target), "original_module"):
            parts += 1
            inside += sum(_computes(each) for each in part.original_module.graph.nodes)
        elif _computes(node) and "executorch_call_delegate" not in str(node.target):
            portable[f"{node.target._name} in {layer_of(node) or 'the network'}"] += 1
    told = f"XNNPACK runs {inside} operators in {parts} part{'' if parts == 1 else 's'}"
    if not portable:
        return f"{told}, and nothing is left for portable kernels"
    rest = [f"{name}{f' ({count} times)' if count > 1 else ''}" for name, count in portable.most_common(SHOWN)]
    more = f" and {len(portable) - SHOWN} more" if len(portable) > SHOWN else ""
    return f"{told}; portable kernels, which are slower, run {', '.join(rest)}{more}"


def _computes(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and node.target is not operator.getitem
