"""One process writes while another reads: every read gives one content or the other, and none fails."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.counts import Tally
from support.events import in_child
from support.writers import NEW, OLD, WRITERS, Writer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
ROUNDS = [15, pytest.param(200, marks=pytest.mark.reliability)]


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("writer", WRITERS, ids=str)
def test_a_reader_beside_a_writer(writer: Writer, rounds: int, tmp_path: Path, tally: Tally) -> None:
    path = tmp_path / writer.name
    writer.write(path, OLD)
    child = os.fork()
    if not child:
        status = 1
        try:
            for number in range(rounds):
                writer.write(path, NEW if number % 2 else OLD)
            status = 0
        finally:
            os._exit(status)
    seen = dict.fromkeys((OLD, NEW), 0)
    ended = 0
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        found = writer.content(path)
        assert found in (OLD, NEW), found
        seen[found] += 1
    assert status == 0
    assert len(list(tmp_path.iterdir())) == 1
    tally("reads beside a writer", "tried", sum(seen.values()))
    tally("writes beside a reader", "tried", rounds)


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("writer", WRITERS, ids=str)
def test_two_writers(writer: Writer, rounds: int, tmp_path: Path, tally: Tally) -> None:
    path = tmp_path / writer.name
    children = []
    for content in (OLD, NEW):
        child = os.fork()
        if not child:
            status = 1
            try:
                for _ in range(rounds // 2):
                    writer.write(path, content)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert writer.content(path) in (OLD, NEW)
    assert len(list(tmp_path.iterdir())) == 1
    tally("writes beside a writer", "tried", 2 * (rounds // 2))


def test_a_stopped_writer_does_not_keep_readers(tmp_path: Path) -> None:
    """Who holds the lock for ever is waited for ten seconds, no longer."""
    from rankwise.files import temporary

    writer = WRITERS[0]
    path = tmp_path / writer.name
    writer.write(path, OLD)

    def waits() -> str:
        temporary.PATIENCE = 0.2
        start = time.monotonic()
        assert writer.content(path) == OLD
        return str(time.monotonic() - start)

    with temporary.locked(path):
        ended = in_child(waits)
    assert ended.code == 0, ended.told
    assert 0.2 <= float(ended.told) < 20
