"""A process that ends, and a system that refuses, at every file event of every writer."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.counts import Tally
from support.events import KILLED, Ended, count, killed_at, refused_at, with_at_most
from support.writers import EXPORTS, NEW, NEXT, OLD, WRITERS, Writer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and audit events by path")
ERRORS = [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EACCES, "Permission denied")]
ERRORS += [OSError(errno.EINTR, "Interrupted system call")]
SIZES = (0, 1, 7, 8, 9, 100, 500, 1000, 2000, 3500)
# Every event in the long run; some of some writers in the ordinary tests.
SLOW, QUICK = pytest.mark.reliability, ("artifact plain", "statistics", "times")


def cases() -> Iterator[Any]:
    for writer in WRITERS:
        if writer.name in QUICK:
            yield pytest.param(writer, 9, id=f"{writer} every ninth")
    for writer in (*WRITERS, *EXPORTS):
        yield pytest.param(writer, 1, id=f"{writer}", marks=SLOW)


class Place:
    """A folder with the old content in it, or with nothing, as often as it is asked for."""

    def __init__(self, writer: Writer, folder: Path, old: bool) -> None:
        self.writer, self.folder, self.old = writer, folder, old
        self.base = folder / "base"
        self.base.mkdir()
        if old:
            writer.write(self.base / writer.name, OLD)
        clean = folder / "clean"
        clean.mkdir()
        if old:
            writer.write(clean / writer.name, OLD)
        writer.write(clean / writer.name, NEXT)
        self.wanted = names(clean)

    def new(self) -> Path:
        made = self.folder / "run"
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(self.base, made)
        return made / self.writer.name

    def content(self, path: Path) -> int:
        """Which content is there, 0 for none."""
        if not self.old:
            try:
                return self.writer.content(path)
            except (ValueError, OSError):
                return 0
        return self.writer.content(path)

    def goes_on(self, path: Path) -> None:
        """The next run writes as if nothing had happened, and nothing is left of this one."""
        self.writer.write(path, NEXT)
        assert self.writer.content(path) == NEXT
        assert names(path.parent) == self.wanted


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("old", [True, False], ids=["over", "anew"])
@pytest.mark.parametrize("writer, step", list(cases()))
def test_a_kill_at_every_file_event(writer: Writer, step: int, old: bool, tmp_path: Path, tally: Tally) -> None:
    place = Place(writer, tmp_path, old)
    there = OLD if old else 0
    path = place.new()
    events = count(path.parent, lambda: writer.write(path, NEW))
    assert events > 5
    ends = [("kill", number) for number in range(1, events + 1)] + [("limit", size) for size in SIZES]
    for how, number in ends[::step]:
        path = place.new()
        work = lambda path=path: writer.write(path, NEW)  # noqa: E731
        ended = killed_at(path.parent, work, number) if how == "kill" else with_at_most(number, work, kill=True)
        assert ended.code in (KILLED, -25, 0), ended
        found = place.content(path)
        assert found in (there, NEW), f"{how} {number}: {found}"
        place.goes_on(path)
        tally("kills", "tried", 1)
        tally("kills", "replaced" if found == NEW else "as before", 1)


@pytest.mark.parametrize("writer, step", list(cases()))
def test_a_refusal_at_every_file_event(writer: Writer, step: int, tmp_path: Path, tally: Tally) -> None:
    place = Place(writer, tmp_path, True)
    path = place.new()
    events = count(path.parent, lambda: writer.write(path, NEW))
    ends = [(error, number) for number in range(1, events + 1) for error in ERRORS]
    for error, number in [*ends, *[(None, size) for size in SIZES]][::step]:
        path = place.new()
        work = lambda path=path: writer.write(path, NEW)  # noqa: E731
        if error is None:
            ended = with_at_most(number, work, kill=False)
        else:
            ended = refused_at(path.parent, work, number, error)
        found = place.content(path)
        assert found in (OLD, NEW), f"{error} at {number}: {found}"
        told_rightly(writer, ended, found)
        place.goes_on(path)
        tally("refusals of the system", "tried", 1)
        tally("refusals of the system", "replaced" if found == NEW else "as before", 1)


def told_rightly(writer: Writer, ended: Ended, found: int) -> None:
    """An error where the old content is there, or one that says that it is not; success only with the new content."""
    assert ended.code in (0, 1), ended
    assert "Traceback" not in ended.told, ended.told
    assert len(ended.told) < 1000
    if ended.code == 0 and not writer.adds:  # a cache that cannot be written is no error
        assert found == NEW
    if ended.code == 1:
        assert found == OLD or "was replaced" in ended.told, ended.told
        assert "cannot" in ended.told or "was replaced" in ended.told, ended.told
