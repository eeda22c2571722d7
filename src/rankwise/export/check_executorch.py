"""Run an ExecuTorch file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

from torch import Tensor

from .capture import quiet
from .compare import Arguments, first_line, tensors_in

_alive: WeakSet[Callable[[Sequence[Tensor]], list[Tensor]]] = WeakSet()


def program(path: Path, threads: int | None = None) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """The forward of a .pte file on the CPU: a function from input tensors, in the order of `forward`, to outputs.

    Args:
        path: the file.
        threads: of XNNPACK. All programs of a process share one pool; None leaves it unchanged.

    Raises:
        ValueError: if ExecuTorch cannot run the file, or fails on inputs, or programs in use have another number of
            threads.
    """
    with quiet():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime, Verification

    if threads is not None and (there := portable_lib._threadpool_get_thread_count()) != threads:
        if _alive:  # they hold pointers to the pool, and would crash
            raise ValueError(
                f"ExecuTorch programs of this process run on {there} threads, so this one cannot have {threads}; "
                f"delete them first, or use another process"
            )
        portable_lib._unsafe_reset_threadpool(threads)
    try:
        loaded = Runtime.get().load_program(path, verification=Verification.Minimal)
        method = loaded.load_method("forward")
    except (RuntimeError, OSError) as error:
        raise ValueError(f"ExecuTorch cannot load {path}: {first_line(error)}; export it again") from error

    run = partial(_run, method, loaded)
    _alive.add(run)
    return run


def forward(path: Path, threads: int | None = None) -> Callable[[Arguments], list[Tensor]]:
    """`program` as a function of the arguments of the network's forward."""
    run = program(path, threads)
    return lambda given: run(tensors_in(given))


def _run(method: Any, loaded: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """One forward; `loaded` is an argument because a method does not keep its program alive."""
    try:
        return tensors_in(method.execute([tensor.detach().cpu().contiguous() for tensor in inputs]))
    except RuntimeError as error:
        shapes = [list(tensor.shape) for tensor in inputs]
        raise ValueError(
            f"ExecuTorch fails on inputs of shapes {shapes} ({first_line(error)}); "
            f"a .pte file takes the shapes and types that it was exported with"
        ) from error
