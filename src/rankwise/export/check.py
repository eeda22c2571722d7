"""Run an ONNX file in onnxruntime, and compare it with the network it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def session(file: Path | bytes, threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU, of a file or of what is in one.

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


def check(model: nn.Module, path: Path, given: Arguments, tolerance: float, what: str) -> None:
    """Compare the outputs of a file with those of the network.

    Args:
        model: the network.
        path: the file.
        given: arguments of the forward.
        tolerance: largest `max |onnx - torch| / max |torch|` over an output.
        what: what is special about these arguments, for messages.

    Raises:
        ValueError: saying which output differs, and by how much.
    """
    args, kwargs = given
    try:
        with torch.no_grad():
            output = model(*args, **kwargs)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} itself does not run at {what} ({first_line(error)}); "
            f"export with dynamic_batch=False"
        ) from error
    ours = [leaf.cpu() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    running = session(path)
    try:
        theirs = [torch.from_numpy(each) for each in running.run(None, feed(running, given))]
    except Exception as error:
        raise ValueError(
            f"onnxruntime fails on the exported file at {what}: {first_line(error)}; export with dynamic_batch=False"
        ) from error
    if [each.shape for each in ours] != [each.shape for each in theirs]:
        raise ValueError(
            f"at {what} the exported file gives outputs of shapes {[list(each.shape) for each in theirs]}, torch "
            f"{[list(each.shape) for each in ours]}; export with dynamic_batch=False"
        )
    for index, (exact, other) in enumerate(zip(ours, theirs, strict=True)):
        gap = _difference(other, exact)
        if not gap <= tolerance:
            raise ValueError(
                f"at {what} output {index} of the exported file is off by {gap:.2g} relative to torch, tolerance is "
                f"{tolerance:g}; export model.float() where it is half precision, or accept it with a larger tolerance"
            )


def _difference(other: Tensor, exact: Tensor) -> float:
    """`max |other - exact| / max |exact|`; equal infinities and two NaN are equal."""
    other, exact = other.double(), exact.double()
    same = (other == exact) | (other.isnan() & exact.isnan())
    gap = torch.where(same, 0.0, (other - exact).abs())
    scale = float(torch.where(exact.isfinite(), exact.abs(), 0.0).amax()) if exact.numel() else 0.0
    return (float(gap.amax()) if gap.numel() else 0.0) / (scale or 1.0)


def first_line(error: BaseException) -> str:
    """The first line of a message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
