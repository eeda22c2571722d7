"""How long networks take, side by side in one run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arguments import arguments
from ..guards import unwrap

ENGINES = ("torch", "onnxruntime")
_QUARTILES = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds for one forward.

    Attributes:
        median: of all rounds.
        low: first quartile.
        high: third quartile.
    """

    median: float
    low: float
    high: float


def latency(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    engine: str = "torch",
    threads: int = 1,
    rounds: int = 30,
    warmup: int = 3,
) -> dict[str, Latency]:
    """Time one forward of each model, in turns.

    Every round runs each model once, and the next round begins with the next model: what slows the machine down for a
    while slows all of them, so their ratio stays right when the seconds do not.

    Args:
        models: the networks by name; a model that torch.compile made is timed as compiled.
        example: the input, as for `find`.
        engine: "torch", or "onnxruntime" on the CPU.
        threads: of the CPU; torch's own setting is restored.
        rounds: measured rounds.
        warmup: rounds before them.

    Returns:
        Median and quartiles in seconds, by name.

    Raises:
        ValueError: if an argument is out of range, or a model cannot be exported for onnxruntime.
        ImportError: if the engine is onnxruntime and the extra `[onnx]` is not installed.

    Example:
        >>> timed = latency({"dense": model, "small": small}, torch.randn(1, 3, 32, 32))  # doctest: +SKIP
        >>> timed["dense"].median / timed["small"].median  # doctest: +SKIP
        1.7
    """
    if not models:
        raise ValueError("models is empty; name at least one model")
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}")
    for name, value, least in (("threads", threads, 1), ("rounds", rounds, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    with torch.no_grad(), ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        stack.enter_context(torch_threads(threads))
        if engine == "torch":
            runs = {name: _torch_run(model, example) for name, model in models.items()}
        else:
            runs = {name: _onnxruntime_run(model, example, threads) for name, model in models.items()}
        seconds = in_turns(runs, rounds, warmup)
    return {name: _summary(values) for name, values in seconds.items()}


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of every measured round by name; round r starts with run r modulo their number."""
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            began = time.perf_counter()
            runs[name]()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def synchronised(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The run until its work is done: the launch of a kernel on a GPU returns before."""
    if device.type != "cuda":
        return run

    def waiting() -> None:
        run()
        torch.cuda.synchronize(device)

    return waiting


def _torch_run(model: nn.Module, example: Any) -> Callable[[], object]:
    args, kwargs = arguments(unwrap(model), example)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return synchronised(lambda: model(*args, **kwargs), device)


def _onnxruntime_run(model: nn.Module, example: Any, threads: int) -> Callable[[], object]:
    from ..export.check import feed, session
    from ..export.onnx import onnx

    with tempfile.TemporaryDirectory() as folder:
        # only this batch size is run; a half-precision network rounds differently there, and is as fast all the same
        file = onnx(model, example, Path(folder) / "model.onnx", dynamic_batch=False, tolerance=0.05)
        running = session(file, threads)
    inputs = feed(running, arguments(unwrap(model), example))
    return lambda: running.run(None, inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no more: unlike `pristine`, fused kernels and compiled code stay on, as in real use."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """So many threads inside, and torch's own setting again after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _summary(seconds: list[float]) -> Latency:
    low, median, high = torch.tensor(seconds, dtype=torch.float64).quantile(_QUARTILES).tolist()
    return Latency(median=median, low=low, high=high)
