"""Read an artifact at one moment: both files are opened together, and the tensors checked against the manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from ..files import locked, parse_json, read_text, told
from .manifest import LARGEST, Manifest

Found = TypeVar("Found")

MANIFEST = "rankwise.json"
WEIGHTS = "model.safetensors"
# The new manifest, while the tensors are replaced.
NEXT = f".{MANIFEST}.next"
ROUNDS = 1000  # attempts at an artifact that is replaced while it is opened, on systems without locks
_DAMAGED = "the file is damaged or an incomplete copy: copy it again, or save the artifact again"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An artifact in memory, whatever happens to its files from now on.

    Attributes:
        file: name of the manifest's file.
        tensors: the content of its tensors' file, which has the manifest's sha256.
    """

    manifest: Manifest
    file: str
    tensors: bytes


def opened(directory: Path, *, alone: bool = False) -> Opened:
    """Read an artifact.

    Raises:
        ValueError: naming the file that is missing or damaged, or does not match the other.
    """
    return _settled(directory, lambda: _read(directory, alone))


def manifest_of(directory: Path) -> Manifest:
    """The manifest of an artifact; its tensors are read only if a killed run has left two manifests.

    Raises:
        ValueError: naming the file, and the field that is missing or wrong.
    """

    def read() -> Manifest:
        if (directory / NEXT).exists():
            return _read(directory, alone=False).manifest
        return _parsed(directory / MANIFEST, _text(directory, MANIFEST))

    return _settled(directory, read)


def is_ours(path: Path) -> bool:
    """Whether a file is a manifest that Rankwise wrote, of any version, damaged or not as long as it is JSON."""
    try:
        plain = parse_json(read_text(path, LARGEST))
    except ValueError:
        return False
    return isinstance(plain, dict) and {"format_version", "dense_fingerprint", "tensors_sha256"} <= plain.keys()


def _settled(directory: Path, read: Callable[[], Found]) -> Found:
    """Read again if reading failed while the artifact was replaced, which locks prevent where they exist."""
    for _ in range(ROUNDS):
        before = _state(directory)
        try:
            return read()
        except ValueError:
            if before == _state(directory):
                raise
    raise ValueError(f"{directory} is replaced all the time; read it when it is complete")


def _read(directory: Path, alone: bool) -> Opened:
    # No writer renames one of the files until both are open.
    with nullcontext() if alone else locked(directory, shared=True):
        texts = {name: _text(directory, name) for name in (MANIFEST, NEXT) if (directory / name).is_file()}
        if not texts:
            _text(directory, MANIFEST)
        weights = _weights(directory)
    path, problems = directory / WEIGHTS, []
    with weights:
        size, tensors = os.fstat(weights.fileno()).st_size, None
        for name, text in texts.items():
            try:
                manifest = _parsed(directory / name, text)
                if size != manifest.tensors_bytes:
                    raise ValueError(f"{path} has {size:,} bytes, {name} says {manifest.tensors_bytes:,}; {_DAMAGED}")
                with told(path):
                    tensors = weights.read() if tensors is None else tensors
                if hashlib.sha256(tensors).hexdigest() != manifest.tensors_sha256:
                    raise ValueError(f"the sha256 of {path} is not the one in {name}; {_DAMAGED}")
                return Opened(manifest=manifest, file=name, tensors=tensors)
            except ValueError as problem:
                problems.append(problem)
    raise problems[0]


def _weights(directory: Path) -> BinaryIO:
    path = directory / WEIGHTS
    if not path.is_file():
        raise ValueError(f"there is no {path}, though {MANIFEST} is there; copy the whole directory")
    with told(path):
        return path.open("rb")


def _text(directory: Path, name: str) -> str:
    if not (directory / name).is_file():
        raise ValueError(f"{directory} is not an artifact: there is no {directory / name}")
    with told(directory / name):
        return read_text(directory / name, LARGEST)


def _parsed(path: Path, text: str) -> Manifest:
    with told(path):
        return Manifest.from_json(text)


def _state(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Changes when one of the files is replaced."""
    found = {}
    for name in (MANIFEST, NEXT, WEIGHTS):
        with suppress(OSError):
            at = os.stat(directory / name)
            found[name] = (at.st_ino, at.st_mtime_ns, at.st_size)
    return found
