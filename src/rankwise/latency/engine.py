"""What an engine is: it runs networks and tells how long they take."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..running.arguments import Arguments
from ..timing.clock import ROUNDS, WARMUP, Latency, timed, torch_threads
from ..timing.product import Product


class Work(NamedTuple):
    """A network or a layer, and the arguments of its forward."""

    module: nn.Module
    given: Arguments


class Engine(ABC):
    """Where networks run, on some threads of the CPU. `name` is what users write, `summary` what they read."""

    name: ClassVar[str]
    summary: ClassVar[str]

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; it must be at least 1")
        self.threads = threads

    @property
    def version(self) -> str:
        """Version of the library that runs networks; times of another version are measured again."""
        return version("torch")

    def device(self, network: nn.Module) -> str:
        """The device on which the network runs."""
        return processor()

    def __str__(self) -> str:
        return f"{self.name}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def hold(self, work: Work) -> None:  # noqa: B027  # an engine that prepares nothing has nothing to hold
        """Prepare a network once for all later calls of `times`."""

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside, torch computes no gradients and uses the engine's number of threads."""
        with torch_threads(self.threads), torch.no_grad():
            yield

    @abstractmethod
    def times(
        self,
        works: Mapping[str, Work],
        *,
        rounds: int | None = ROUNDS,
        warmup: int = WARMUP,
        around: int = 0,
        narrow: float | None = None,
        layers: Mapping[str, str] | None = None,
    ) -> dict[str, Latency]:
        """Seconds of one forward of each work, all under the same conditions.

        Args:
            works: what to time, by name.
            rounds: measured runs of each; None as for `clock.timed`.
            warmup: runs before them.
            around: bytes read between two runs, in place of the other layers of a network.
            narrow: width of an interval, as for `clock.timed`.
            layers: the network's layer for each work, for messages.

        Raises:
            ValueError: naming the layer, if the engine cannot run it.
        """


class Running(Engine):
    """An engine on this machine: it measures, in turns."""

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        self._held: WeakKeyDictionary[nn.Module, Callable[[], object]] = WeakKeyDictionary()
        self._product = Product() if threads == 1 else None  # with one, the calling thread works alone

    def hold(self, work: Work) -> None:
        with self.ready():
            self._held[work.module] = self.prepare(work)

    @abstractmethod
    def prepare(self, work: Work) -> Callable[[], object]:
        """A function that runs the work once and returns when it is done.

        Raises:
            ValueError: if the engine cannot run it.
        """

    def times(
        self,
        works: Mapping[str, Work],
        *,
        rounds: int | None = ROUNDS,
        warmup: int = WARMUP,
        around: int = 0,
        narrow: float | None = None,
        layers: Mapping[str, str] | None = None,
    ) -> dict[str, Latency]:
        others = torch.ones(around // 4)

        def between(name: str) -> None:
            # As inside a network: the weights are out of the cache, and the input was written last.
            if around:
                others.sum()
                for leaf in pytree.tree_leaves(works[name].given):
                    if isinstance(leaf, Tensor) and leaf.device.type == "cpu":
                        leaf.sum()

        with self.ready():
            runs: dict[str, Callable[[], object]] = {}
            for name, work in works.items():
                try:
                    runs[name] = self._held.get(work.module) or self.prepare(work)
                except ValueError as error:
                    if layers is None:
                        raise
                    raise ValueError(f"layer {layers[name]!r} as {name.rpartition(': ')[2]}: {error}") from error
            before = {name: partial(between, name) for name in runs}
            return timed(runs, rounds=rounds, warmup=warmup, before=before, product=self._product, narrow=narrow)


@cache
def processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, "") or platform.processor() or platform.machine()
