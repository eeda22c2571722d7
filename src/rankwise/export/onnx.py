"""ONNX files that are checked against onnxruntime before they appear."""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..arguments import arguments
from ..batches import pristine, samples_in
from ..guards import unwrap
from ..state import state_of
from .check import Arguments, check, first_line

# A protobuf file ends at 2 GB; above this the weights go to a file beside it.
LARGEST_FILE = 1_900_000_000
_LOUD = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


def onnx(
    model: nn.Module,
    example_input: Any,
    path: str | Path,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    tolerance: float = 1e-5,
) -> Path:
    """Write a network as an ONNX file whose outputs are those of the network.

    The file is run in onnxruntime on the example, and with `dynamic_batch` on another batch size too, and appears at
    `path` only when it agrees.

    Args:
        model: a dense or compressed network; it is exported in eval mode and not changed.
        example_input: a tensor, a tuple (`model(*x)`) or a mapping (`model(**x)`).
        path: the file. Weights beyond 1.9 GB go to `PATH.data` beside it.
        opset: ONNX operator set, None for the exporter's own.
        dynamic_batch: leave the first dimension of the inputs open.
        tolerance: largest `max |onnx - torch| / max |torch|` over an output.

    Returns:
        The path.

    Raises:
        ValueError: if the network cannot be exported, naming the operator and the layer, or the outputs disagree.
        ImportError: if the extra `[onnx]` is not installed.

    Example:
        >>> onnx(small, torch.randn(1, 3, 32, 32), "small.onnx")  # doctest: +SKIP
        PosixPath('small.onnx')
    """
    _need_extra()
    model, path = unwrap(model), Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory; name a file, such as {path / 'model.onnx'}")
    if any(tensor.dtype == torch.bfloat16 for tensor in model.state_dict().values() if isinstance(tensor, Tensor)):
        raise ValueError("onnxruntime runs no bfloat16 on the CPU, so the file cannot be checked; export model.float()")
    with pristine(model), _quiet():
        example = arguments(model, example_input)
        size = samples_in(pytree.tree_leaves(example))
        # a traced size of 1 would be taken for a constant
        traced = _resized(example, size, max(size, 2)) if dynamic_batch else example
        leaves = zip(pytree.tree_leaves(example), pytree.tree_leaves(traced), strict=True)
        program = _captured(model, traced, [long for leaf, long in leaves if dynamic_batch and _batched(leaf, size)])
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.tmp-") as folder:
            written = Path(folder) / path.name
            _convert(program, written, opset, state_of(model).bytes > LARGEST_FILE)
            check(model, written, example, tolerance, f"batch size {size}")
            if dynamic_batch:
                check(model, written, _resized(example, size, size + 2), tolerance, f"batch size {size + 2}")
            for file in sorted(Path(folder).iterdir(), reverse=True):  # the weights beside the file come first
                os.replace(file, path.parent / file.name)
    return path


def _captured(model: nn.Module, given: Arguments, batched: list[Tensor]) -> torch.export.ExportedProgram:
    shapes = torch.export.ShapesCollection()
    for tensor in batched:
        shapes[tensor] = {0: torch.export.Dim.DYNAMIC}
    args, kwargs = given
    try:
        dynamic = shapes.dynamic_shapes(model, args, kwargs) if batched else None
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        if frozen := re.search(r"You marked (\S+) as dynamic .* to be a constant \((\d+)\)", str(error)):
            reason = f"forward takes the batch size {frozen[1]} for the constant {frozen[2]}"
            fix = "export with dynamic_batch=False, or read the size from the input"
        else:
            reason, fix = first_line(error), "take Python control flow that depends on tensor values out of forward"
        raise ValueError(f"torch.export cannot capture {type(model).__name__}: {reason}; {fix}") from error


def _convert(program: torch.export.ExportedProgram, path: Path, opset: int | None, external: bool) -> None:
    import onnx

    try:
        translations: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.index_select.default: _select}
        converted = torch.onnx.export(
            program, dynamo=True, opset_version=opset, verbose=False, custom_translation_table=translations
        )
        assert converted is not None
        converted.save(str(path), external_data=external)
    except OSError:  # no fault of the network's
        raise
    except Exception as error:
        operator = _operator(error)
        where = f" in {_site_of(program, operator)}" if operator else ""
        raise ValueError(
            f"ONNX has no translation for {operator or 'an operator'}{where}: {_root(error)}; "
            f"compute it with other operators, or try another opset"
        ) from error
    got = {each.domain: each.version for each in onnx.load(str(path), load_external_data=False).opset_import}[""]
    if opset is not None and got != opset:
        raise ValueError(f"opset is {opset}, but the network can only be written with opset {got}; ask for {got}")


def _select(self: Any, dim: int, index: Any) -> Any:
    """Chosen entries of one dimension; onnxruntime's `Gather` copies those of the last one number by number."""
    from onnxscript import opset18

    op: Any = opset18
    rank = len(self.shape)
    if rank < 2 or dim % rank != rank - 1:
        return op.Gather(self, index, axis=dim)
    others = op.Concat(op.Shape(self, start=0, end=rank - 1), op.Constant(value_ints=[1]), axis=0)
    return op.GatherElements(self, op.Expand(index, others), axis=rank - 1)


def _resized(given: Arguments, size: int, wanted: int) -> Arguments:
    """The same arguments with samples repeated, or left out, until there are `wanted`."""
    index = torch.arange(wanted) % size

    def resize(leaf: Any) -> Any:
        return leaf[index.to(leaf.device)] if _batched(leaf, size) else leaf

    resized: Arguments = pytree.tree_map(resize, given)
    return resized


def _batched(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size


def _operator(error: BaseException | None) -> str | None:
    while error is not None:
        if found := re.search(r"op='([\w.:]+)'", str(error)):
            return found[1]
        error = error.__cause__
    return None


def _site_of(program: torch.export.ExportedProgram, operator: str) -> str:
    """The qualified name of the layer that calls an operator."""
    for graph in (program.graph, program.run_decompositions().graph):
        for node in graph.nodes:
            if operator in str(node.target) and (stack := node.meta.get("nn_module_stack")):
                name, kind = list(stack.values())[-1]
                return f"layer {name!r} ({kind})" if name else "the model's own forward"
    return "the network"


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    # the exporters print progress, and on failure whole graphs
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _need_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX export needs {error.name}: pip install 'rankwise[onnx]'") from error
