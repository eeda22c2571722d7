"""Files are replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rankwise.files import replacing


def test_the_old_file_stays_until_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(UnicodeEncodeError), replacing(path) as new:
        new.write_text("half \ud800", encoding="utf-8")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a.txt")
    with replacing(tmp_path / "link") as new:
        new.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_device_is_not_replaced() -> None:
    with replacing(Path(os.devnull)) as new:
        new.write_text("nothing")
    assert not Path(os.devnull).is_file()


def test_errors_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write: .*tmp"), replacing(tmp_path) as new:
        new.write_text("a directory")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write: .*below\.txt"), replacing(tmp_path / "file" / "below.txt"):
        pass
