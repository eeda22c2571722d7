"""Every file event of a run, one after another, as a place where the process is killed or the system refuses.

Events are the calls that Python makes of the system for paths below a folder (open, rename, mkdir, chmod, remove, ...,
by its audit events), `fsync`, and every write beyond a number of bytes, whoever writes: the kernel's limit on the size
of files holds for libraries in C++ and Rust too.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILLED = 9
EVENTS = ("open", "os.", "shutil.", "sqlite3.connect", "tempfile.")


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, and what it told."""

    code: int
    told: str


def in_child(work: Callable[[], str]) -> Ended:
    """Run work in a copy of this process; an exception is code 1 and told."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code, told = 1, ""
        try:
            told, code = work(), 0
        except BaseException as error:
            told = (
                f"{type(error).__name__}: {error}"
                if isinstance(error, (OSError, ValueError))
                else traceback.format_exc()
            )
        with os.fdopen(write, "w") as pipe:
            pipe.write(told[:100_000])
        os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    status = os.waitpid(child, 0)[1]
    return Ended(os.waitstatus_to_exitcode(status), told)


def count(folder: Path, work: Callable[[], Any]) -> int:
    """How many events the work has."""
    seen = [0]

    def counted() -> str:
        watch(folder, lambda number, name: seen.__setitem__(0, number))
        work()
        return str(seen[0])

    ended = in_child(counted)
    assert ended.code == 0, ended.told
    return int(ended.told)


def killed_at(folder: Path, work: Callable[[], Any], place: int) -> Ended:
    """Run the work in a process that ends, without a word, at that event."""

    def dying() -> str:
        def at(number: int, name: str) -> None:
            if number == place:
                os._exit(KILLED)

        watch(folder, at)
        work()
        return ""

    return in_child(dying)


def refused_at(folder: Path, work: Callable[[], Any], place: int, error: OSError) -> Ended:
    """Run the work in a process to which the system refuses that event."""

    def refused() -> str:
        def at(number: int, name: str) -> None:
            if number == place:
                raise OSError(error.errno, error.strerror)

        watch(folder, at)
        work()
        return ""

    return in_child(refused)


def with_at_most(size: int, work: Callable[[], Any], kill: bool) -> Ended:
    """Run the work in a process that dies, or is refused, at the first byte beyond `size` of a file that it writes."""

    def limited() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        work()
        return ""

    return in_child(limited)


def watch(folder: Path, at: Callable[[int, str], None]) -> None:
    """Call `at(number, name)` at each event from now on; there is no way back, so that only children are watched."""
    below, number = str(folder), [0]

    def event(name: str, arguments: tuple[Any, ...]) -> None:
        if name.startswith(EVENTS) and any(_path(each).startswith(below) for each in arguments):
            number[0] += 1
            at(number[0], name)

    sync = os.fsync

    def fsync(handle: int) -> None:
        event("os.fsync", (os.readlink(f"/proc/self/fd/{handle}"),))
        sync(handle)

    sys.addaudithook(event)
    os.fsync = fsync


def _path(argument: object) -> str:
    try:
        return os.path.abspath(os.fsdecode(argument))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
