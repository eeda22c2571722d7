"""Directories that are replaced as a whole: a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(directory: Path, marker: str, own: Collection[str]) -> Iterator[Path]:
    """A new directory that takes the place of `directory` when the block ends without an error.

    The new one is a hidden sibling until then. No call exchanges two directories everywhere, so the old one steps aside
    under the name `aside(directory)` for the moment between two renames; a run killed in that moment has lost nothing,
    `current` finds it there. Files that are not `own` move over to the new directory.

    Args:
        directory: what to replace; it may be absent or empty.
        marker: file that a directory must hold to be replaced.
        own: names of the files that are replaced.

    Raises:
        ValueError: if `directory` is a file, or a directory with other content than an artifact's.
        OSError: naming `directory`, if it cannot be written.
    """
    target = directory.resolve()
    old = aside(target)
    if target.exists() and not target.is_dir():
        raise ValueError(f"{directory} is a file; name a directory for the artifact")
    if target.is_dir() and any(target.iterdir()) and not (target / marker).is_file():
        raise ValueError(f"{directory} is not empty and holds no {marker}; name a new or an empty directory")
    new = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if old.is_dir():  # a run was killed between the renames, or after them
            _discard(old, own, target) if target.is_dir() else old.rename(target)
        new.mkdir()
        yield new
        for path in (*new.iterdir(), new):
            _sync(path)
        _swap(new, target, old)
        _sync(target.parent)
        if old.is_dir():
            _discard(old, own, target)
    except OSError as error:
        raise OSError(error.errno, f"cannot write the artifact: {error.strerror or error}", str(directory)) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def current(directory: Path) -> Path:
    """Where the content of `directory` is: there, or aside, when a run was killed between the renames."""
    old = aside(directory.resolve())
    return old if old.is_dir() and not directory.exists() else directory


def aside(directory: Path) -> Path:
    """Where the old directory stands during the replacement."""
    return directory.with_name(f".{directory.name}.previous")


def _swap(new: Path, target: Path, old: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise


def _discard(old: Path, own: Collection[str], target: Path) -> None:
    """Delete a replaced directory; what is not its own moves to the new one."""
    for path in old.iterdir():
        if path.name in own:
            path.unlink()
        elif (target / path.name).exists():
            reason = f"{path}, left by an interrupted run, exists in {target} as well; delete one of them"
            raise FileExistsError(errno.EEXIST, reason)
        else:
            path.rename(target / path.name)
    old.rmdir()


def _sync(path: Path) -> None:
    """Force a file or directory to the disk, so that a rename never outlives a power cut that its content does not."""
    if path.is_dir() and os.name != "posix":  # only POSIX can open a directory
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
