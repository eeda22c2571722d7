"""Counts of what was tried, printed as a table at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from support.counts import COLUMNS, Tally

_COUNTS: dict[str, Counter[str]] = {}


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Call it with what was tried, how that ended (one of `COLUMNS`), and how often."""

    def add(what: str, how: str, times: int = 1) -> None:
        assert how in COLUMNS
        record_property(f"tally {what}|{how}", times)

    return add


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties if report.when == "call" else ():
        if name.startswith("tally "):
            what, _, how = name.removeprefix("tally ").partition("|")
            _COUNTS.setdefault(what, Counter())[how] += int(str(value))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _COUNTS:
        return
    always = ("tried", "lost", "half", "left over", "wrong")
    used = [column for column in COLUMNS if column in always or any(counts[column] for counts in _COUNTS.values())]
    terminalreporter.section("reliability")
    terminalreporter.write_line("| what | " + " | ".join(used) + " |")
    terminalreporter.write_line("|---|" + "--:|" * len(used))
    for what, counts in _COUNTS.items():
        terminalreporter.write_line(f"| {what} | " + " | ".join(f"{counts[column]:,}" for column in used) + " |")
