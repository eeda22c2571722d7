"""Progress of what takes long: bars with the time left in a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

EVERY = 10.0  # seconds between lines


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(3.21), duration(200), duration(7260)
        ('3.2 s', '3 min 20 s', '2 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


@dataclass
class Task:
    """Something that takes a while; `done` of `total` parts, if it has parts."""

    text: str
    total: int | None = None
    done: int = 0
    start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.start

    def __str__(self) -> str:
        took = self.seconds
        if not self.total:
            return f"{self.text}: {duration(took)} so far"
        done = max(self.done, 0)
        left = f", about {duration(took / done * (self.total - done))} left" if done else ""
        return f"{self.text}: {done} of {self.total} ({done / self.total:.0%}), {duration(took)} so far{left}"


class Progressing:
    """Shows the tasks that run, and says when each is done.

    Args:
        console: where bars are drawn if it is a terminal, else where lines go; None shows nothing.
        done: called with each task at its end.
        every: seconds between lines.
    """

    def __init__(self, console: Console | None, done: Callable[[Task], object], every: float = EVERY) -> None:
        self._console = console
        self._done = done
        self._every = every
        self._tasks: list[Task] = []
        self._bars: Progress | None = None
        self._quit = threading.Event()

    @contextmanager
    def task(self, text: str, total: int | None = None) -> Iterator[Callable[[int, str], None]]:
        """Show a task while it lasts; call what it yields with the parts that are done, and the text to show."""
        task = Task(text, total)
        self._tasks.append(task)
        if len(self._tasks) == 1:
            self._begin()
        bar = None if self._bars is None else self._bars.add_task(text, total=total)

        def update(done: int, text: str) -> None:
            task.done, task.text = done, text
            if self._bars is not None and bar is not None:
                self._bars.update(bar, completed=done, description=text)

        try:
            yield update
        finally:
            self._tasks.remove(task)
            if self._bars is not None and bar is not None:
                self._bars.remove_task(bar)
            if not self._tasks:
                self._end()
            task.text = text
            self._done(task)

    def line(self) -> str | None:
        """The task that runs now, in words."""
        return str(self._tasks[-1]) if self._tasks else None

    def _begin(self) -> None:
        if self._console is None:
            return
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.progress import TimeRemainingColumn as Left

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Left())
            self._bars = Progress(*columns, console=self._console, transient=True)
            self._bars.start()
            return
        self._quit = threading.Event()  # its own for each thread: one may wake while the next begins
        threading.Thread(target=self._lines, args=(self._quit,), name="rankwise progress", daemon=True).start()

    def _end(self) -> None:
        self._quit.set()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _lines(self, quit: threading.Event) -> None:
        while not quit.wait(self._every):
            if (line := self.line()) is not None and self._console is not None:
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
