"""Run an ExecuTorch file, and compare it with the network it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from .capture import quiet
from .compare import Arguments, compare, first_line, outputs, tensors_in

_alive: WeakSet[Callable[[Sequence[Tensor]], list[Tensor]]] = WeakSet()


def program(path: Path, threads: int | None = None) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """The forward of a .pte file, run by ExecuTorch on the CPU.

    Args:
        path: the file.
        threads: of XNNPACK. One pool serves all programs of a process; None takes it as it is.

    Returns:
        A function of the input tensors, in the order of `forward`; it gives the output tensors.

    Raises:
        ValueError: if ExecuTorch cannot run the file, or fails on inputs, or other programs run on another number of
            threads.
    """
    with quiet():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime, Verification

    if threads is not None and (there := portable_lib._threadpool_get_thread_count()) != threads:
        if _alive:  # they hold pointers to the pool, and would crash
            raise ValueError(
                f"ExecuTorch programs of this process run on {there} threads, so this one cannot have {threads}; "
                f"let go of them first, or use another process"
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


def _run(method: Any, loaded: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """One forward; the loaded program is an argument because a method does not keep it alive."""
    try:
        return tensors_in(method.execute([tensor.detach().cpu().contiguous() for tensor in inputs]))
    except RuntimeError as error:
        shapes = [list(tensor.shape) for tensor in inputs]
        raise ValueError(
            f"ExecuTorch fails on inputs of shapes {shapes} ({first_line(error)}); "
            f"a .pte file takes the shapes and types that it was exported with"
        ) from error


def check(model: nn.Module, path: Path, given: Arguments, tolerance: float, what: str) -> None:
    """Compare the outputs of a file with those of the network.

    Args:
        model: the network.
        path: the file.
        given: arguments of the forward.
        tolerance: largest `max |executorch - torch| / max |torch|` over an output.
        what: what is special about these arguments, for messages.

    Raises:
        ValueError: saying which output differs, and by how much.
    """
    compare(program(path)(tensors_in(given)), outputs(model, given, what), tolerance, what)
