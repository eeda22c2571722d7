"""What all exports share: capture a program, find the layer of an operator, and silence exporters."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..running.calling import samples_in
from ..running.guards import refuse_running_copy
from ..running.pristine import pristine
from .compare import Arguments, first_line

_LOUD = (
    *("torch.onnx", "torch.export", "torch.fx", "torch.utils._pytree", "onnxscript", "onnx_ir"),
    *("executorch", "torchao"),
)
# Number of an input tensor, and an axis of it.
Place = tuple[int, int]


def captured(
    model: nn.Module, given: Arguments, dynamic_batch: bool, axes: Collection[Place] = (), hint: Any = None
) -> torch.export.ExportedProgram:
    """The program of a network.

    Args:
        model: the network, in eval mode.
        given: arguments of its forward.
        dynamic_batch: whether the first dimension of the inputs is open.
        axes: further open axes.
        hint: whether these must be open (`Dim.DYNAMIC`), or only if the network allows it (`Dim.AUTO`).

    Raises:
        ValueError: saying why `torch.export` cannot capture the network, or if it is a copy for running.
    """
    refuse_running_copy(model)
    size = samples_in(pytree.tree_leaves(given))
    # torch.export treats a size of 1 as a constant
    traced = resized(given, max(size, 2)) if dynamic_batch else given
    leaves = zip(pytree.tree_leaves(given), pytree.tree_leaves(traced), strict=True)
    shapes = torch.export.ShapesCollection()
    tensors = [(leaf, long) for leaf, long in leaves if isinstance(leaf, Tensor)]
    opened: dict[int, dict[int, Any]] = defaultdict(dict)
    for index, axis in axes:
        opened[index][axis] = hint
    for index, (leaf, _) in enumerate(tensors):
        if dynamic_batch and _batched(leaf, size):
            opened[index][0] = torch.export.Dim.DYNAMIC
    for index, dimensions in opened.items():
        shapes[tensors[index][1]] = dimensions
    args, kwargs = traced
    try:
        dynamic = shapes.dynamic_shapes(model, args, kwargs) if opened else None
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        frozen = re.search(r"You marked (\S+) as dynamic .* to be a constant \((\d+)\)", str(error))
        if frozen and axes and hint is torch.export.Dim.DYNAMIC:
            reason = f"forward treats {frozen[1]} as the constant {frozen[2]}"
            fix = "leave that axis out of dynamic_axes, or read the size from the input"
        elif frozen:
            reason = f"forward treats the batch size {frozen[1]} as the constant {frozen[2]}"
            fix = "export with dynamic_batch=False, or read the size from the input"
        else:
            reason, fix = first_line(error), "take Python control flow that depends on tensor values out of forward"
        raise ValueError(f"torch.export cannot capture {type(model).__name__}: {reason}; {fix}") from error


def resized(given: Arguments, wanted: int) -> Arguments:
    """The same arguments with `wanted` samples: samples are repeated or left out."""
    return picked(given, torch.arange(wanted) % samples_in(pytree.tree_leaves(given)))


def picked(given: Arguments, numbers: Tensor) -> Arguments:
    """The samples of these numbers."""
    size = samples_in(pytree.tree_leaves(given))

    def pick(leaf: Any) -> Any:
        return leaf[numbers.to(leaf.device)] if _batched(leaf, size) else leaf

    made: Arguments = pytree.tree_map(pick, given)
    return made


def _batched(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size


def site_of(program: torch.export.ExportedProgram, operator: str) -> str:
    """The layer that calls an operator, in words."""
    for graph in (program.graph, program.run_decompositions().graph):
        for node in graph.nodes:
            if operator in str(node.target) and (where := layer_of(node)):
                return where
    return "the network"


def layer_of(node: fx.Node) -> str | None:
    """The layer that a node of a program belongs to, in words."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    name, kind = list(stack.values())[-1]
    return f"layer {name!r} ({kind})" if name else "the model's own forward"


def root(error: BaseException) -> str:
    """The first line of an error's first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def file_path(path: str | Path, suffix: str) -> Path:
    """The path of a file to write.

    Raises:
        ValueError: if it is a directory, or not a regular file, such as /dev/null.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory; name a file, such as {path / ('model' + suffix)}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file, so the export cannot be read back and checked; name another")
    return path


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Inside, a language model returns no cache, which is an object that exporters do not know."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    using = [config for config in configs.values() if getattr(config, "use_cache", False) is True]
    for config in using:
        config.use_cache = False
    try:
        yield
    finally:
        for config in using:
            config.use_cache = True


@contextmanager
def exporting(model: nn.Module) -> Iterator[None]:
    """Inside, the network runs as it is exported: untouched, without a cache, and exporters say nothing."""
    with pristine(model), quiet(), without_cache(model):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters, which print progress, and whole graphs when they fail."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
