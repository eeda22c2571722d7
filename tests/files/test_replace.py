"""Files are replaced as a whole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from rankwise.files import Stream, replacing, replacing_several


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


def test_permissions_of_the_old_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.write_text("old")
    path.chmod(0o600)
    with replacing(path) as new:
        new.write_text("new")
        assert new.parent.stat().st_mode & 0o077 == 0  # nobody else may look in before
    assert path.stat().st_mode & 0o777 == 0o600
    with replacing(tmp_path / "fresh") as new:
        new.write_text("new")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "fresh").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    for name in ("n" * 255, "ü" * 127):
        for content in "ab":
            with replacing(tmp_path / name) as new:
                new.write_text(content)
            assert (tmp_path / name).read_text() == content
    assert len(list(tmp_path.iterdir())) == 2


def test_links_that_lead_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match=r"cannot write: .*'.*a'"), replacing(tmp_path / "a") as new:
        new.write_text("never")


def test_what_fails_after_the_place_was_taken_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def refused(folder: Path) -> None:
        if folder.is_dir():
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("rankwise.files.replace.sync", refused)
    told = "was replaced, but the disk did not confirm it: Input/output error"
    with pytest.raises(OSError, match=told), replacing(path) as new:
        new.write_text("new")
    assert path.read_text() == "new"


def test_several_files_the_one_that_refers_to_the_others_last(tmp_path: Path) -> None:
    path = tmp_path / "below" / "net.onnx"
    with replacing_several(path) as folder:
        (folder / "net.onnx").write_text("refers to net.onnx.data")
        (folder / "net.onnx.data").write_text("weights")
        assert list(path.parent.glob("net*")) == []
    assert sorted(each.name for each in path.parent.iterdir()) == ["net.onnx", "net.onnx.data"]


def test_a_stream_keeps_the_first_error_until_it_is_closed(tmp_path: Path) -> None:
    stream = Stream(tmp_path / "a")
    assert stream.write(b"abc") == 3
    assert stream.sha256 == hashlib.sha256(b"abc").hexdigest()
    stream.close()
    assert (tmp_path / "a").read_bytes() == b"abc"
    if Path("/dev/full").exists():
        stream = Stream(Path("/dev/full"))
        assert stream.write(b"x" * 100_000) == 100_000
        with pytest.raises(OSError, match="No space left"):
            stream.close()
