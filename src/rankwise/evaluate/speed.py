"""How long networks take, side by side in one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ..latency import Engine, Latency, Work, get_engine
from ..latency.engine import Running
from ..running.arguments import arguments
from ..running.guards import unwrap
from ..running.pristine import rows_kept
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

    Every round runs each model once, and the next round begins with the next model: what slows the machine down for a
    while slows all of them, so their ratio stays right when the seconds do not. `compress`, `evaluate` and `export` of
    the command line measure so. A machine with more load than cores is warned of.

    Args:
        models: the networks by name; a model that torch.compile made is timed as compiled.
        example: the input, as for `find`.
        engine: "torch", "compile" (torch.compile), "onnxruntime", "executorch", "cuda", or "roofline:FILE.yaml".
        threads: of the CPU; torch's own setting is restored.
        rounds: measured rounds; by default 30, each the median of as many turns as fill half a second together.
        warmup: rounds before them.

    Returns:
        Median and its confidence interval in seconds, by name; a quotient of two is the ratio of paired rounds with its
        own interval.

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
        stack.enter_context(running.ready())
        if isinstance(running, Running):
            stack.enter_context(watched())
        works = {name: Work(model, arguments(unwrap(model), example)) for name, model in models.items()}
        return running.times(works, rounds=rounds, warmup=warmup)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no more: unlike `pristine`, fused kernels and compiled code stay on, as in real use."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with rows_kept(model):
            yield
    finally:
        for module, flag in training:
            module.training = flag
