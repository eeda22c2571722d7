"""Files read as a whole from one open handle: what is checked is what is used."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .text import cut, shown


def read_bytes(path: Path, largest: int | None = None) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        largest: bytes that it may have.

    Raises:
        OSError: where it cannot be read.
        ValueError: where it is no regular file, or larger.
    """
    with open(path, "rb", opener=_opened) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        if largest is not None and found.st_size > largest:
            raise ValueError(f"it has {found.st_size:,} bytes, more than the {largest:,} that are read")
        return file.read()


def read_text(path: Path, largest: int | None = None) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        OSError, ValueError: as `read_bytes`, and for what is no text.
    """
    try:
        return read_bytes(path, largest).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text in UTF-8: {error}") from error


_USUAL: tuple[type[Exception], ...] = (OSError, ValueError, MemoryError)


@contextmanager
def told(path: Path | str, fix: str = "", *further: type[Exception]) -> Iterator[None]:
    """An error inside becomes a `ValueError` of bounded length that names the file, and what to do.

    Args:
        path: the file.
        fix: what the message ends with.
        further: kinds of errors beside those of the system, of values and of memory.
    """
    try:
        yield
    except (*_USUAL, *further) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise ValueError(cut(f"{shown(str(path), 200)[1:-1]}: {reason}" + (f"; {fix}" if fix else ""))) from error


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody writes to is told, not waited for
