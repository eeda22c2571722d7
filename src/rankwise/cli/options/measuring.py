"""Options of what judges networks, and of measuring latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from ...names import check_engine_name
from .base import budget, data, output

if TYPE_CHECKING:
    from ...figures.judging import Judging
    from ...figures.measured import Timing
    from ...latency import Engine

JUDGE_HELP = (
    "agreement, relative_error, cosine, ... or FILE.py:FUNCTION judges networks instead of what fits their outputs: "
    "(model, batches) -> number, with :lower where lower is better."
)
ClassesDim = Annotated[
    int | None, data("--classes-dim N", "Dimension of the outputs that holds the classes, where it cannot be inferred.")
]
EngineName = Annotated[
    str,
    budget(
        "--engine NAME",
        "Engine that a latency budget is measured in: torch, compile, onnxruntime, executorch, cuda, or "
        "roofline:FILE.yaml for a device that is not here.",
    ),
]
Threads = Annotated[int, output("--threads N", "Threads when latency is measured.")]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What judges networks."""

    metric: Annotated[str | None, data("--metric NAME", JUDGE_HELP, shown=False)] = None
    classes_dim: ClassesDim = None

    def judging(self) -> Judging:
        """These options as the library takes them."""
        from ...figures.judging import Judging

        return Judging.of(self.metric and [self.metric], self.classes_dim, fits=False)


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """The conditions that latency is measured under."""

    threads: Threads = 1
    latency_batch: Annotated[int, output("--latency-batch N", "Samples in a batch when latency is measured.")] = 1


@dataclass(frozen=True, kw_only=True)
class Figured(Measuring):
    """How the latency among the figures is measured."""

    engines: Annotated[
        str,
        output(
            "--engines NAME,NAME",
            "Engines that the latency of the figures is measured in: torch, compile, onnxruntime, executorch, "
            "cuda, none; auto: torch, and onnxruntime where it is installed.",
        ),
    ] = "auto"

    def timing(self) -> Timing:
        """These options as the library takes them."""
        from ...figures.measured import Timing

        return Timing.of(self.engines, self.threads, self.latency_batch)


@dataclass(frozen=True, kw_only=True)
class Timed(Measuring):
    """How a latency budget is measured."""

    engine: EngineName = "torch"

    def check(self) -> None:
        """Refuse an unknown engine, before torch is imported."""
        check_engine_name(self.engine, where=f"--engine {self.engine!r}: ")

    def measuring(self, timed: bool, figures: bool = False) -> Engine | None:
        """The engine that measures a latency budget, if there is one (`timed`); refuses options without effect.

        With `figures`, threads and batch also serve the figures.
        """
        if not timed:
            given = {"--engine": self.engine != "torch"}
            if not figures:
                given |= {"--threads": self.threads != 1, "--latency-batch": self.latency_batch != 1}
            if idle := [name for name in given if given[name]]:
                raise ValueError(f"{', '.join(idle)}: no effect without a latency budget")
            return None
        from ...latency import get_engine

        own = 1 if figures and self.engine.startswith("roofline:") else self.threads  # a described device has none
        return get_engine(self.engine, own)


@dataclass(frozen=True, kw_only=True)
class TimedAndFigured(Timed, Figured):
    """How a latency budget and the latency among the figures are measured."""
