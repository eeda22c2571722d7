"""A small matrix product tells good moments of a machine from slow ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

# Rows of the product: about ten microseconds.
PRODUCT = 80
# Above this share of the calling thread's time, the other threads of the process are part of a run.
ELSEWHERE = 0.2
# The machine's better moments: the fastest fifth of the products; and how much slower a good moment may be.
BETTER, SLOW = 0.2, 1.15
# The fewest good runs that say something; without them the least slow ones are taken.
FEWEST = 6


class Run(NamedTuple):
    """Seconds of one run: on the wall, of the calling thread, of the process; and how many products ran before it."""

    wall: float
    thread: float = 0.0
    process: float = 0.0
    place: int = 0


def one_run(run: Callable[[], object], *, alone: bool) -> Run:
    """Run once; with `alone` the clocks of thread and process are read too."""
    if not alone:
        began = time.perf_counter()
        run()
        return Run(time.perf_counter() - began)
    process, thread, began = time.process_time(), time.thread_time(), time.perf_counter()
    run()
    wall, thread = time.perf_counter() - began, time.thread_time() - thread
    return Run(wall, thread, time.process_time() - process)


class Product:
    """A small matrix product between runs that a thread does alone; it remembers how fast the machine can be.

    On shared machines there are moments, a tenth of a second to minutes long, in which every call takes ten
    microseconds longer: as much as a whole layer. No factor corrects that, so runs in such moments are left out.
    """

    def __init__(self) -> None:
        self._x = torch.ones(PRODUCT, PRODUCT)
        self._y = torch.empty(PRODUCT, PRODUCT)
        self.seconds: list[float] = []
        self._known = (0, 0.0)

    def __call__(self) -> None:
        self.seconds.append(one_run(self._once, alone=True).thread)

    def _once(self) -> None:
        torch.mm(self._x, self._x, out=self._y)

    def good(self, runs: Sequence[Run]) -> list[int]:
        """Places of the runs in good moments: the products right before and right after them were quick."""
        slow = self._slow(runs)
        return [place for place, each in enumerate(slow) if each <= SLOW]

    def own(self, runs: Sequence[Run], good: Sequence[int] | None = None) -> list[float]:
        """Seconds that runs took themselves, without time in which another process had the core.

        Args:
            runs: of one function.
            good: the places that count, by default all. If they are fewer than `FEWEST`, the least slow ones count,
                divided by how slow the machine was.
        """
        thread, process = sum(run.thread for run in runs), sum(run.process for run in runs)
        if process > (1 + ELSEWHERE) * thread:  # other threads of this process did some of the work
            return [run.wall for run in runs]
        own = [min(run.wall, run.thread) for run in runs]
        if good is None:
            return own
        if len(good) >= FEWEST:
            return [own[place] for place in good]
        slow = self._slow(runs)
        least = sorted(sorted(range(len(runs)), key=slow.__getitem__)[:FEWEST])
        return [own[place] / max(slow[place], 1.0) for place in least]

    def _slow(self, runs: Sequence[Run]) -> list[float]:
        usual = self._usual()
        return [max(self.seconds[run.place - 1], self.seconds[run.place]) / usual for run in runs]

    def _usual(self) -> float:
        """Seconds of a product in a good moment."""
        if self._known[0] != len(self.seconds):
            self._known = len(self.seconds), sorted(self.seconds)[int(BETTER * len(self.seconds))]
        return self._known[1]
