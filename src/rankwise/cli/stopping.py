"""Commands that are stopped from outside: one line that says what was kept, an exit code, no half-written file."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

CLOSED_PIPE = 128 + 13  # the shell's code for SIGPIPE


class Stopped(KeyboardInterrupt):
    """A signal that ends the command as Ctrl-C does: everything is tidied up on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP act as Ctrl-C does; a signal that the caller ignores stays ignored."""
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def exit_code(error: KeyboardInterrupt) -> int:
    """130 for Ctrl-C, 143 for SIGTERM: 128 plus the number of the signal, as in shells."""
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


class Kept:
    """What a stopped command leaves behind: it looks which of its files and folders have changed.

    Args:
        targets: files and folders that the command writes, each as a whole; None for none.
    """

    def __init__(self, targets: Iterable[Path | None]) -> None:
        self._before = {target: _stamps(target) for target in targets if target is not None}
        self.further: Callable[[], str | None] = lambda: None

    def changed(self, target: Path) -> bool:
        """Whether a target is there and not what it was."""
        return (now := _stamps(target)) != self._before[target] and bool(now)

    def told(self, error: KeyboardInterrupt) -> str:
        """The line for a person."""
        by = signal.Signals(error.number).name if isinstance(error, Stopped) else "Ctrl-C"
        written = [str(target) for target in self._before if self.changed(target)]
        if written:
            kept = f"{', '.join(written)} was written before that and can be used; later results are missing"
        else:
            kept = self.further() or "nothing was written; run the command again"
        return f"stopped by {by}: {kept}"


def checkpoint_told(checkpoint: Path | None, first_stage: str) -> str | None:
    """What a checkpoint holds for a run that resumes; the first of two stages adds `first_stage` to the file's name."""
    from ..training.checkpoint import read_checkpoint

    if checkpoint is None:
        return "nothing was written; with --checkpoint FILE a run that is stopped can be resumed"
    for file in (checkpoint, checkpoint.with_name(f"{checkpoint.name}.{first_stage}")):
        if file.is_file():
            step = read_checkpoint(file)["step"]
            return f"checkpoint {file} holds step {step}; the same command with --resume resumes from there"
    return None


def close_quietly() -> None:
    """Send the rest of standard output nowhere, once its reader has gone."""
    with suppress(OSError, ValueError):  # a stream without a file of its own, as in tests
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _stamps(target: Path) -> frozenset[tuple[str, int, int]]:
    """Names, inodes and times of a target's files: what changes when they are replaced."""
    files = [path for path in (target, *target.rglob("*")) if path.is_file()]
    return frozenset((str(path), path.stat().st_ino, path.stat().st_mtime_ns) for path in files)
