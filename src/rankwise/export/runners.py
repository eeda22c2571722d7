"""Run an exported file in the engine of its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ..running.exclusive import exclusive
from ..timing.clock import Latency, timed, torch_threads
from ..timing.load import watched
from .compare import Arguments, tensors_in

# Target -> (suffix of its files, package that runs them, extra that installs it).
TARGETS = {
    "onnx": (".onnx", "onnxruntime", "onnx"),
    "executorch": (".pte", "executorch", "executorch"),
    "pt2": (".pt2", "torch", ""),
}


def target_of(path: Path, target: str | None = None) -> str:
    """The target of a file: the given one, else by its suffix.

    Raises:
        ValueError: for an unknown target or suffix.
        ImportError: if its engine is not installed.
    """
    if target is not None and target not in TARGETS:
        raise ValueError(f"there is no target {target!r}; the targets are {', '.join(TARGETS)}")
    found = target or next((name for name, (suffix, _, _) in TARGETS.items() if path.suffix == suffix), None)
    if found is None:
        known = ", ".join(f"{suffix} ({name})" for name, (suffix, _, _) in TARGETS.items())
        raise ValueError(f"the suffix of {path} belongs to no target: take one of {known}, or name the target")
    _, package, extra = TARGETS[found]
    if find_spec(package) is None:
        there = [name for name, (_, other, _) in TARGETS.items() if find_spec(other) is not None]
        raise ImportError(
            f"target {found} needs {package}: pip install 'rankwise[{extra}]'; installed are {', '.join(there)}"
        )
    return found


def runner(path: Path, threads: int | None = None, target: str | None = None) -> Callable[[Arguments], list[Tensor]]:
    """The forward of an exported file: a function from arguments of the network's forward to output tensors.

    Args:
        path: the file.
        threads: of onnxruntime or ExecuTorch, None for the engine's own choice; torch has its own setting.
        target: a key of `TARGETS`, by default that of the suffix.

    Raises:
        ValueError: if the engine cannot run the file, or the suffix is unknown.
        ImportError: if the engine is not installed.

    Example:
        >>> runner(Path("small.onnx"), threads=1)(((torch.randn(1, 3, 32, 32),), {}))  # doctest: +SKIP
    """
    target = target_of(path, target)
    if target == "onnx":
        from .check import program as run_by_onnxruntime

        return run_by_onnxruntime(path, threads)
    if target == "executorch":
        from .check_executorch import forward as run_by_executorch

        return run_by_executorch(path, threads)
    from .to_pt2 import run_by_torch

    return run_by_torch(path)


def once(path: Path, given: Arguments, threads: int | None = None, target: str | None = None) -> Callable[[], object]:
    """A function that runs an exported file once and does nothing else: inputs are prepared for its engine before.

    Args and errors are those of `runner`; `given` are arguments of the network's forward.
    """
    target = target_of(path, target)
    if target == "onnx":
        from .check import feed, session

        running = session(path, threads)
        return partial(running.run, None, feed(running, given))
    if target == "executorch":
        from .check_executorch import program

        return partial(program(path, threads), tensors_in(given))
    return partial(runner(path, threads, target), given)


@exclusive
def times(
    files: Mapping[str, Path], given: Arguments, *, threads: int = 1, target: str | None = None
) -> dict[str, Latency]:
    """Seconds for one forward of each file, by name, measured as `evaluate.latency` measures networks.

    Args:
        files: by name.
        given: arguments of the network's forward.
        threads: of the engine; torch's own setting is restored.
        target: a key of `TARGETS`, by default that of the suffixes.
    """
    runs = {name: once(path, given, threads, target) for name, path in files.items()}
    with torch_threads(threads), torch.no_grad(), watched():
        return timed(runs)
