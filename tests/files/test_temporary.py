"""Temporary folders: whose process has ended is removed by the next of the same name, others are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.files import is_temporary, locked, sibling, target_of, temporary_folder

HOLD = """
import sys, time
from pathlib import Path
from rankwise.files import sibling
with sibling(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print(folder.name, flush=True)
    time.sleep(100)
"""


def test_those_of_a_killed_run_are_removed_and_those_of_a_running_one_stay(tmp_path: Path) -> None:
    held = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    assert held.stdout is not None
    name = held.stdout.readline().strip()
    assert is_temporary(name)
    assert target_of(name) == "a"
    with sibling(tmp_path / "a"):
        assert (tmp_path / name / "half").exists()
    held.kill()
    held.wait()
    assert (tmp_path / name / "half").exists()
    with sibling(tmp_path / "b"), sibling(tmp_path / "ab"):  # not of their names
        assert (tmp_path / name / "half").exists()
    with sibling(tmp_path / "a"):
        assert not (tmp_path / name).exists()
    assert list(tmp_path.iterdir()) == []


def test_what_only_looks_like_one_stays(tmp_path: Path) -> None:
    for name in (".a.tmp-0123abcd", ".a.tmp-0123abcg", ".a.tmp-", "a.tmp-0123abcd"):
        (tmp_path / name).write_text("a file of somebody")
    with sibling(tmp_path / "a"):
        pass
    assert len(list(tmp_path.iterdir())) == 4


def test_they_are_private_and_gone_after_an_error(tmp_path: Path) -> None:
    def stopped(folder: Path) -> None:
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "deep").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), sibling(tmp_path / "a") as folder:
        stopped(folder)
    assert list(tmp_path.iterdir()) == []
    with temporary_folder() as folder:
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.skipif(os.name != "posix", reason="folders have locks on POSIX alone")
def test_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwise.files.temporary.PATIENCE", 0.05)
    with locked(tmp_path, shared=True), locked(tmp_path, shared=True):
        pass
    with locked(tmp_path), locked(tmp_path):  # waited for, then gone on without
        pass
    with locked(tmp_path / "nowhere"):
        pass
