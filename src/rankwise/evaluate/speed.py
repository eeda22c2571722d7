"""Latency of networks, side by side in one run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import nn

from ..latency import Engine, Latency, Work, get_engine
from ..latency.engine import Running
from ..running.arguments import arguments
from ..running.guards import unwrap
from ..running.pristine import evaluating, rows_kept
from ..running.verbs import verb
from ..timing.clock import WARMUP
from ..timing.load import watched


@verb
def latency(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    engine: str | Engine = "torch",
    threads: int = 1,
    rounds: int | None = None,
    warmup: int = WARMUP,
) -> dict[str, Latency]:
    """Time one forward of each model, in turns.

    Every round runs each model once, and the next round begins with the next model. So a machine that slows down for a
    while slows all of them, and their ratio stays right when the seconds do not. The commands `compress`, `evaluate`
    and `export` measure in the same way. A warning tells if the machine has more load than cores.

    Args:
        models: the networks by name; a model made by torch.compile is timed as compiled.
        example: the input, as for `find`.
        engine: "torch", "compile" (torch.compile), "onnxruntime", "executorch", "cuda", or "roofline:FILE.yaml".
        threads: of the CPU; torch's own setting is restored.
        rounds: measured rounds; by default 30, each the median of enough turns to fill half a second together.
        warmup: rounds before them.

    Returns:
        Median and its confidence interval in seconds, by name; the quotient of two is the ratio of paired rounds with
        its own interval.

    Raises:
        ValueError: if an argument is out of range, or the engine cannot run a model.
        ImportError: if the engine is not installed.

    Example:
        >>> timed = latency({"dense": model, "small": small}, torch.randn(1, 3, 32, 32))  # doctest: +SKIP
        >>> print(timed["dense"] / timed["small"])  # doctest: +SKIP
        1.70x faster (1.66 to 1.75)
    """
    if not models:
        raise ValueError("models is empty; name at least one model")
    for name, value, least in (("rounds", rounds, 1), ("warmup", warmup, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    running = get_engine(engine, threads)
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
            stack.enter_context(rows_kept(model))
        stack.enter_context(running.ready())
        if isinstance(running, Running):
            stack.enter_context(watched())
        works = {name: Work(model, arguments(unwrap(model), example)) for name, model in models.items()}
        return running.times(works, rounds=rounds, warmup=warmup)
