"""The directory of an artifact: two files that change together.

No system call replaces two files at once. So the new manifest is put beside the old one, then the new tensors replace
the old ones, then the new manifest does. A run that ends in between has replaced the artifact: if the manifest does not
match the tensors, the one beside it does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..files import locked
from ..files.replace import ReplacedError, followed, make_folder, mode_of, own, put, sync, told_of
from ..files.temporary import is_temporary, sibling
from .opening import MANIFEST, NEXT, WEIGHTS, is_ours, opened


@contextmanager
def replacing(directory: Path) -> Iterator[tuple[Path, Path]]:
    """New files for the tensors and the manifest, which replace the old ones if the block ends without an error.

    Other files in the directory stay. Leftovers of killed runs are removed.

    Raises:
        ValueError: if `directory` is a file, or holds something else than an artifact.
        OSError: naming `directory`, if it cannot be written; the old artifact is unchanged, or the error says that it
            was replaced.
    """
    with told_of(directory, "cannot write the artifact"):
        target = followed(directory)
        check_replaceable(target, directory)
        made = make_folder(target)
        try:
            with sibling(target / "rankwise") as folder:
                modes = {name: mode_of(target / name, folder) for name in (WEIGHTS, MANIFEST)}
                yield folder / WEIGHTS, folder / MANIFEST
                for name, mode in modes.items():
                    own(folder / name, target / name, mode)
                    sync(folder / name)
                with locked(target):
                    _finish(target)
                    _commit(target, folder / WEIGHTS, folder / MANIFEST)
        finally:
            for folder in made:  # fails for folders that are no longer empty
                with suppress(OSError):
                    folder.rmdir()


def check_replaceable(target: Path, directory: Path) -> None:
    """Raise a ValueError for a directory that holds something else than an artifact.

    Args:
        target: the directory that links lead to.
        directory: as the user named it.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{directory} is a file; name a directory for the artifact")
    names = {name for name in os.listdir(target) if not is_temporary(name)}
    if names and MANIFEST not in names and NEXT not in names:
        raise ValueError(f"{directory} is not empty and holds no {MANIFEST}; name a new or an empty directory")
    if MANIFEST in names and not is_ours(target / MANIFEST):
        raise ValueError(
            f"{directory / MANIFEST} was not written by Rankwise, or is damaged; name another directory, or delete it"
        )


def _commit(target: Path, weights: Path, manifest: Path) -> None:
    try:
        os.replace(manifest, target / NEXT)
        sync(target)
        put(weights, target / WEIGHTS)
    except ReplacedError:
        raise
    except OSError:
        with suppress(OSError):
            (target / NEXT).unlink()
        raise
    try:
        put(target / NEXT, target / MANIFEST)
    except OSError as error:
        raise ReplacedError(error.errno, error.strerror or str(error)) from error


def _finish(target: Path) -> None:
    """Finish what a killed run left between its two files: if its tensors are in place, its manifest follows."""
    if (target / NEXT).exists():
        with suppress(ValueError):
            if opened(target, alone=True).file == NEXT:
                put(target / NEXT, target / MANIFEST)
                return
        (target / NEXT).unlink()
