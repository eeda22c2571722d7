"""Options of what judges networks, and of measuring latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ...names import AT_HAND, check_engine_name
from .base import budget, data, output

if TYPE_CHECKING:
    from ...figures.judging import Judging
    from ...figures.measured import Timing

JUDGE_HELP = (
    "agreement, relative_error, cosine, ... or FILE.py:FUNCTION judges networks instead of what fits their outputs: "
    "(model, batches) -> number, with :lower where lower is better."
)
UNTIMED = "none"
ClassesDim = Annotated[
    int | None, data("--classes-dim N", "Dimension of the outputs that holds the classes, where it cannot be inferred.")
]
EngineName = Annotated[
    str,
    budget(
        "--engine NAME",
        "Engine that will run the network: torch, compile, onnxruntime, executorch, cuda, or roofline:FILE.yaml for a "
        "device that is not here. The plan fits it and saves time there. auto: onnxruntime where it is installed, else "
        "torch; none: plan by counts alone, and measure a latency budget in torch.",
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
    """Where the network will run."""

    engine: EngineName = "auto"

    def check(self) -> None:
        """Refuse an unknown engine, before torch is imported."""
        check_engine_name(self.engine, (AT_HAND, UNTIMED), where=f"--engine {self.engine!r}: ")

    def wishes(self, needed: bool, wanted: bool = True) -> dict[str, Any]:
        """The arguments engine and threads of `rankwise.choose`, with "timed" for whether plans are measured.

        Args:
            needed: whether a budget is measured.
            wanted: whether plans are measured without such a budget if no engine is named.
        """
        if self.engine == UNTIMED:
            return {"timed": needed, "threads": self.threads} if needed else {"timed": False}
        if self.engine == AT_HAND:
            return {"timed": needed or wanted, "engine": AT_HAND, "threads": self.threads}
        from ...latency import get_engine

        # A described device has no threads: with figures, the option is for these.
        own = 1 if isinstance(self, Figured) and self.engine.startswith("roofline:") else self.threads
        return {"timed": True, "engine": get_engine(self.engine, own)}


@dataclass(frozen=True, kw_only=True)
class TimedAndFigured(Timed, Figured):
    """Where the network will run, and how the latency among the figures is measured."""
