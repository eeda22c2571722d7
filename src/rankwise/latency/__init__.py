"""Latency on the engine that will run the network: of whole networks, and of every option of every layer."""

from __future__ import annotations

from ..names import AT_HAND, check_engine_name
from ..timing.clock import Latency, Ratio
from .engine import Engine, Work
from .executorch_engine import ExecuTorch
from .grid import at_hand
from .onnxruntime_engine import OnnxRuntime
from .roofline import Device, RooflineEngine
from .torch_engines import Compiled, Cuda, Eager

ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (Eager, Compiled, OnnxRuntime, ExecuTorch, Cuda)}


def get_engine(name: str | Engine, threads: int = 1) -> Engine:
    """The engine of a name; `roofline:FILE.yaml` for a device described by a file.

    Raises:
        ValueError: for an unknown name, a missing device or file, or threads that have no effect.
        ImportError: if the engine is not installed, with the command that installs it.

    Example:
        >>> str(get_engine("torch", threads=1))
        'torch, 1 thread'
    """
    if isinstance(name, Engine) or name.startswith("roofline:"):
        engine = name if isinstance(name, Engine) else RooflineEngine(Device.load(name.removeprefix("roofline:")))
        if threads not in (1, engine.threads):
            raise ValueError(
                f"threads={threads} has no effect on engine {str(engine)!r}, which has its own; leave it out"
            )
        return engine
    check_engine_name(name)
    return ENGINES[name](threads)


__all__ = ["AT_HAND", "ENGINES", "Engine", "Latency", "Ratio", "Work", "at_hand", "get_engine"]
