"""Read whole files from one open handle, so that the bytes that are checked are the bytes that are used."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .text import cut, shown


def read_bytes(path: Path, largest: int | None = None) -> bytes:
    """The content of a regular file; a ValueError if it is not one, or has more than `largest` bytes."""
    with open(path, "rb", opener=_opened) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        if largest is not None and found.st_size > largest:
            raise ValueError(f"it has {found.st_size:,} bytes, more than the limit of {largest:,}")
        return file.read()


def read_text(path: Path, largest: int | None = None) -> str:
    """The text of a regular file in UTF-8; a ValueError as from `read_bytes`, or if it is not text."""
    try:
        return read_bytes(path, largest).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8: {error}") from error


@contextmanager
def told(path: Path | str, fix: str = "", *further: type[Exception]) -> Iterator[None]:
    """Turn an error inside into a `ValueError` of bounded length that names the file and the fix.

    Args:
        fix: the end of the message.
        further: kinds of errors beside OSError, ValueError and MemoryError.
    """
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, MemoryError, *further)
    try:
        yield
    except kinds as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise ValueError(cut(f"{shown(str(path), 200)[1:-1]}: {reason}" + (f"; {fix}" if fix else ""))) from error


def _opened(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
