"""Progress, and how much a command says."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rankwise.cli.progress import Progressing, Task, duration

INSPECT = ("inspect", "nets.py:build", "--weights", "net.pt", "--input-shape", "3,8,8")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.4, "59 s"), (60, "1 min"), (3599.7, "1 h 0 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_time_left_follows_from_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("profile", 20, start=0.0)
    monkeypatch.setattr("rankwise.cli.progress.time.perf_counter", lambda: 30.0)
    assert str(task) == "profile: 0 of 20 (0%), 30 s so far"
    task.done = 5
    assert str(task) == "profile: 5 of 20 (25%), 30 s so far, about 1 min 30 s left"
    assert str(Task("loading", start=0.0)) == "loading: 30 s so far"


def test_lines_are_written_where_there_is_no_terminal() -> None:
    written, seen = io.StringIO(), threading.Event()

    class Told(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*objects, **options)
            seen.set()

    ended: list[str] = []
    progress = Progressing(Told(file=written), lambda task: ended.append(task.text), every=0.01)
    with progress.task("outer"), progress.task("inner", 4) as update:
        update(2, "inner two")
        assert seen.wait(10)
    assert "inner" in written.getvalue().splitlines()[0]
    assert ended == ["inner", "outer"]
    assert progress.line() is None


def test_a_terminal_shows_bars() -> None:
    written = io.StringIO()
    progress = Progressing(Console(file=written, force_terminal=True, width=100), lambda task: None)
    with progress.task("fitting", 3) as update:
        update(2, "fitting conv1")
        assert progress._bars is not None
        progress._bars.refresh()
    assert "fitting conv1" in written.getvalue()
    assert "2/3" in written.getvalue()


def test_quiet_verbose_and_a_log(project: Path, cli: Callable[..., Any]) -> None:
    quiet = cli(*INSPECT, "--quiet", "--log", "run.log")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    loud = cli(*INSPECT, "-v", "--log", "run.log")
    assert "break-even" in loud.stdout
    assert "counting: " in loud.stderr
    log = Path("run.log").read_text()
    assert log.count("rankwise inspect nets.py:build") == 2
    assert log.count("break-even") == 2
    both = cli(*INSPECT, "-q", "-v")
    assert (both.exit_code, both.stderr.count("\n")) == (2, 1)
    assert "--quiet and --verbose contradict each other" in both.stderr


def test_an_error_is_in_the_log_with_its_traceback(project: Path, cli: Callable[..., Any]) -> None:
    assert cli("inspect", "nets.py:missing", "--input-shape", "3,8,8", "--log", "run.log").exit_code == 2
    assert "Traceback" in Path("run.log").read_text()
