"""Run an ONNX file in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .compare import Arguments, first_line


def session(file: Path | bytes, threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU, from a file or its content.

    Raises:
        ValueError: if onnxruntime cannot run the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        return onnxruntime.InferenceSession(
            file if isinstance(file, bytes) else str(file), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ValueError(
            f"onnxruntime {onnxruntime.__version__} cannot run the exported file: {first_line(error)}; "
            f"try a lower opset, or a newer onnxruntime"
        ) from error


def feed(running: Any, given: Arguments) -> dict[str, Any]:
    """The inputs of a session by name."""
    args, kwargs = given
    names = [each.name for each in running.get_inputs()]
    if not args and set(names) <= kwargs.keys():
        tensors = [kwargs[name] for name in names]
    else:
        tensors = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}


def program(path: Path, threads: int | None = None) -> Callable[[Arguments], list[Tensor]]:
    """The forward of an ONNX file on the CPU: a function from arguments of the network's forward to output tensors.

    Args:
        path: the file.
        threads: of onnxruntime, None for its own choice.

    Raises:
        ValueError: if onnxruntime cannot run the file.
    """
    running = session(path, threads)

    def run(given: Arguments) -> list[Tensor]:
        return [torch.from_numpy(each) for each in running.run(None, feed(running, given))]

    return run
