"""Replace files as a whole: a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .temporary import sibling


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file that replaces `path`, which may be absent, if the block ends without an error.

    Until then it is in a hidden folder beside it. It is synced to the disk first, and gets the permissions of the old
    one. Special files, such as /dev/null, are written to directly. A missing folder is made.

    Raises:
        OSError: naming `path`, if it cannot be written; the old file is unchanged, or the error says that it was
            replaced.
    """
    with told_of(path):
        target = followed(path)
        if target.exists() and not target.is_file():
            yield target
            return
        make_folder(target.parent)
        with sibling(target) as folder:
            new, mode = folder / target.name, mode_of(target, folder)
            yield new
            own(new, target, mode)
            put(new, target)


@contextmanager
def replacing_several(path: Path) -> Iterator[Path]:
    """A folder whose files replace those of the same names beside `path`; `path`, which refers to them, comes last."""
    with told_of(path):
        target = followed(path)
        make_folder(target.parent)
        with sibling(target) as folder:
            mode = mode_of(target, folder)
            yield folder
            for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):
                own(file, target.parent / file.name, mode)
                put(file, target.parent / file.name)


@contextmanager
def told_of(path: Path, what: str = "cannot write") -> Iterator[None]:
    """Let OSErrors inside name the path that the user knows."""
    try:
        yield
    except ReplacedError as error:
        raise OSError(
            error.errno, f"was replaced, but the disk did not confirm it: {error.strerror}; check the disk", str(path)
        ) from error
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}", str(path)) from error


class ReplacedError(OSError):
    """An error after a file was replaced."""


def put(new: Path, target: Path) -> None:
    """Replace a file by another, synced to the disk before and after.

    Raises:
        ReplacedError: if the disk does not confirm the replacement.
        OSError: if nothing was replaced.
    """
    sync(new)
    os.replace(new, target)
    try:
        sync(target.parent)
    except OSError as error:
        raise ReplacedError(error.errno, error.strerror or str(error)) from error


def sync(path: Path) -> None:
    """Force a file or folder to the disk: after a power cut, a renamed file must not be there without its content."""
    if path.is_dir() and os.name != "posix":  # only POSIX can open a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network disks have no fsync of folders
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> list[Path]:
    """Make a folder and its missing parents, synced to the disk; those that were made, the innermost first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)
    return missing


def mode_of(target: Path, folder: Path) -> int:
    """The permissions of a file, or, if it does not exist, those of any new file; tried out in `folder`."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    probe = folder / "mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


def own(new: Path, target: Path, mode: int) -> None:
    """Give a new file these permissions and, if allowed, the owner of the file that it will replace."""
    if target.exists() and hasattr(os, "chown"):
        before, now = target.stat(), new.stat()
        if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
            with suppress(PermissionError):
                os.chown(new, before.st_uid, before.st_gid)
    new.chmod(mode)


def followed(path: Path) -> Path:
    """The path behind all links; an OSError for links in a circle."""
    try:
        return path.resolve()
    except RuntimeError as error:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


class Stream(io.RawIOBase):
    """A binary file for writers that crash on disk errors, such as PyTorch's: `close` raises the first error.

    Example:
        >>> with Stream(Path(os.devnull)) as stream:
        ...     stream.write(b"abc")
        3
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("wb")
        self._error: OSError | None = None
        self._digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Do nothing: writers seek to the start before they write and after they have finished."""
        assert (offset, whence) == (0, os.SEEK_SET), "overwritten bytes would not be those that were hashed"
        return 0

    def write(self, data: Any) -> int:
        """Hash and write the data; after an error it is only hashed."""
        view = memoryview(data).cast("B")
        self._digest.update(view)
        if self._error is None:
            try:
                self._file.write(view)
            except OSError as error:
                self._error = error
        return len(view)

    @property
    def sha256(self) -> str:
        """Of the data so far."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file; raises the first OSError of all writes."""
        if not self.closed:
            super().close()
            try:
                self._file.close()
            except OSError as error:
                self._error = self._error or error
            if self._error is not None:
                raise self._error
