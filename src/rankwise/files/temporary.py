"""Temporary folders beside their target, and locks; the next run removes what a killed run has left.

A writer locks its temporary folder, and the system releases the lock when the process ends, however it ends. So an
unlocked temporary folder belongs to nobody.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: without locks, and without removing leftovers
    fcntl = None  # type: ignore[assignment]

_TAIL = re.compile(r"\.tmp-[0-9a-f]{8}")
_LONGEST_NAME = 255  # bytes, if the file system does not say
PATIENCE = 10.0  # seconds to wait for a lock, whose owner only renames two files


@contextmanager
def sibling(path: Path) -> Iterator[Path]:
    """A new, hidden, private, locked folder beside `path`, removed when the block ends.

    Leftovers of killed runs for the same path are removed first. An OSError if the folder cannot be made.
    """
    prefix = _prefix(path)
    _clear(path.parent, prefix)
    new, handle = _made(path.parent, prefix)
    try:
        yield new
    finally:
        with suppress(OSError):  # the next run removes the rest
            shutil.rmtree(new, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def temporary_folder() -> AbstractContextManager[Path]:
    """A folder among the system's temporary files; leftovers of killed runs are removed."""
    return sibling(Path(tempfile.gettempdir()) / "rankwise")


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a folder, if its file system has locks and it is free within ten seconds.

    Args:
        folder: any; nothing is written to it.
        shared: share the lock with other readers, but not with a writer.
    """
    handle = None
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if handle is not None:
            until = time.monotonic() + PATIENCE
            while not _lock(handle, shared) and time.monotonic() < until:
                time.sleep(0.001)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def is_temporary(name: str) -> bool:
    """Whether this is the name of one of `sibling`'s folders.

    Example:
        >>> is_temporary(".plan.yaml.tmp-0a1b2c3d")
        True
    """
    return name.startswith(".") and _TAIL.fullmatch(name[-13:]) is not None


def target_of(name: str) -> str:
    """The name of the file or folder that a temporary folder is for.

    Example:
        >>> target_of(".plan.yaml.tmp-0a1b2c3d")
        'plan.yaml'
    """
    return name[1:-13]


def _made(parent: Path, prefix: str) -> tuple[Path, int | None]:
    while True:
        new = parent / f"{prefix}.tmp-{secrets.token_hex(4)}"
        new.mkdir(0o700)
        if fcntl is None:
            return new, None
        # Before it is locked, another run may remove it as a leftover: then make another one.
        with suppress(FileNotFoundError):
            handle = os.open(new, os.O_RDONLY)
            _lock(handle)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(new), os.fstat(handle)):
                    return new, handle
            os.close(handle)


def _clear(parent: Path, prefix: str) -> None:
    for name in os.listdir(parent):
        if name.startswith(prefix) and _TAIL.fullmatch(name[len(prefix) :]) and fcntl is not None:
            with suppress(OSError):
                handle = os.open(parent / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
                try:
                    if _lock(handle):
                        shutil.rmtree(parent / name, ignore_errors=True)
                finally:
                    os.close(handle)


def _lock(handle: int, shared: bool = False) -> bool:
    """Whether the lock is ours now; never on a file system without locks."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _prefix(path: Path) -> str:
    """`.NAME`, shortened if it would exceed the file system's longest name."""
    try:
        longest = os.pathconf(path.parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        longest = _LONGEST_NAME
    name = os.fsencode(path.name)
    room = longest - len(".") - len(".tmp-00000000")
    if len(name) <= room:
        return f".{path.name}"
    known = hashlib.sha256(name).hexdigest()[:16]
    return f".{name[: room - 17].decode(errors='ignore')}-{known}"
