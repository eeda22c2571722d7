"""Files that are replaced as a whole: a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file that takes the place of `path` when the block ends without an error.

    The new one is a hidden sibling until then. What is no regular file, such as /dev/null, is written to directly. A
    missing folder is made.

    Args:
        path: what to replace; it may be absent.

    Raises:
        OSError: naming `path`, if it cannot be written; a file that was there is unchanged.
    """
    target = path.resolve()
    direct = target.exists() and not target.is_file()
    new = target if direct else target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield new
        if not direct:
            os.replace(new, target)
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror or error}", str(path)) from error
    finally:
        if not direct:
            with suppress(OSError):
                new.unlink()
