"""Files that are replaced as a whole: a reader sees the old content or the new, never half of it."""

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
    """A new file that takes the place of `path` when the block ends without an error.

    The new one lies in a hidden folder beside it until then. It is on the disk before it takes the place, and gets the
    permissions of the old one. What is no regular file, such as /dev/null, is written to directly. A missing folder is
    made.

    Args:
        path: what to replace; it may be absent.

    Raises:
        OSError: naming `path`, if it cannot be written; a file that was there is unchanged, or the error says that it
            was replaced.
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
    """A folder whose files take the places of those of their names beside `path`; `path` itself comes last.

    Args:
        path: the file that refers to the others.

    Raises:
        OSError: as `replacing`.
    """
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
    """Errors of the system inside name the path that the user knows."""
    try:
        yield
    except ReplacedError as error:
        raise OSError(
            error.errno, f"was replaced, but the disk did not confirm it: {error.strerror}; check the disk", str(path)
        ) from error
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}", str(path)) from error


class ReplacedError(OSError):
    """What fails after a file has taken its place."""


def put(new: Path, target: Path) -> None:
    """Let a file take the place of another: on the disk before and after.

    Raises:
        ReplacedError: where the disk does not confirm the new place.
        OSError: where it does not take it; the old file is unchanged.
    """
    sync(new)
    os.replace(new, target)
    try:
        sync(target.parent)
    except OSError as error:
        raise ReplacedError(error.errno, error.strerror or str(error)) from error


def sync(path: Path) -> None:
    """Force a file or folder to the disk, so that a rename never outlives a power cut that its content does not."""
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
    """Make a folder and those above it that are missing, on the disk.

    Returns:
        Those that were made, the innermost first.
    """
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)
    return missing


def mode_of(target: Path, folder: Path) -> int:
    """The permissions that a file is to have: those of the file that is there, else those of any new file.

    Args:
        target: the file.
        folder: any that is written to anyway.
    """
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    probe = folder / "mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


def own(new: Path, target: Path, mode: int) -> None:
    """Give a new file these permissions and, where that is allowed, the owner of the file that it will replace."""
    if target.exists() and hasattr(os, "chown"):
        before, now = target.stat(), new.stat()
        if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
            with suppress(PermissionError):
                os.chown(new, before.st_uid, before.st_gid)
    new.chmod(mode)


def followed(path: Path) -> Path:
    """Where a path leads to, links followed.

    Raises:
        OSError: for links that lead in a circle.
    """
    try:
        return path.resolve()
    except RuntimeError as error:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


class Stream(io.RawIOBase):
    """A binary file for writers that do not survive an error of the disk, as PyTorch's do not: it keeps the first one.

    Args:
        path: the file.

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
        """Yes."""
        return True

    def seekable(self) -> bool:
        """As far as writers ask for it, which go back to the start when they have ended."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Nowhere, before anything is written and after all is."""
        assert (offset, whence) == (0, os.SEEK_SET), "what was written would not be what was hashed"
        return 0

    def write(self, data: Any) -> int:
        """Take all of it, written or not."""
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
        """Of what was written so far."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: the first that there was.
        """
        if not self.closed:
            super().close()
            try:
                self._file.close()
            except OSError as error:
                self._error = self._error or error
            if self._error is not None:
                raise self._error
