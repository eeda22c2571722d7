"""An artifact as it was at one moment: both files opened together, the tensors compared with what the manifest says."""

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
# The manifest that comes next, while the tensors are replaced.
NEXT = f".{MANIFEST}.next"
ROUNDS = 1000  # of a reader who finds that an artifact was replaced while he opened it, where locks do not help
_DAMAGED = "the file is damaged or an incomplete copy: copy it again, or save the artifact again"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An artifact, whatever happens to its files from now on.

    Attributes:
        manifest: what it says about itself.
        file: name of the file that said so.
        tensors: the content of its tensors' file, whose sha256 is the manifest's.
    """

    manifest: Manifest
    file: str
    tensors: bytes


def opened(directory: Path, *, alone: bool = False) -> Opened:
    """Read an artifact.

    Args:
        directory: of the artifact.
        alone: the caller holds the directory's lock.

    Raises:
        ValueError: naming the file that is missing, damaged, or not of the other.
    """
    return _settled(directory, lambda: _read(directory, alone))


def manifest_of(directory: Path) -> Manifest:
    """What an artifact says about itself. Its tensors are read only where a killed run has left two manifests.

    Raises:
        ValueError: naming the file, and the field that is missing or wrong.
    """

    def read() -> Manifest:
        if (directory / NEXT).exists():
            return _read(directory, alone=False).manifest
        return _parsed(directory / MANIFEST, _text(directory, MANIFEST))

    return _settled(directory, read)


def is_ours(path: Path) -> bool:
    """Whether a manifest is one that Rankwise wrote, of whatever version, damaged or not as long as it is JSON.

    Raises:
        OSError: where it cannot be read.
    """
    try:
        plain = parse_json(read_text(path, LARGEST))
    except ValueError:
        return False
    return isinstance(plain, dict) and {"format_version", "dense_fingerprint", "tensors_sha256"} <= plain.keys()


def _settled(directory: Path, read: Callable[[], Found]) -> Found:
    """Read again where reading failed while the artifact was replaced, which locks prevent where there are any."""
    for _ in range(ROUNDS):
        before = _state(directory)
        try:
            return read()
        except ValueError:
            if before == _state(directory):
                raise
    raise ValueError(f"{directory} is replaced all the time; read it when it is complete")


def _read(directory: Path, alone: bool) -> Opened:
    # nobody renames one of them until both are opened
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
        raise ValueError(f"{directory} is no artifact: there is no {directory / name}")
    with told(directory / name):
        return read_text(directory / name, LARGEST)


def _parsed(path: Path, text: str) -> Manifest:
    with told(path):
        return Manifest.from_json(text)


def _state(directory: Path) -> list[tuple[int, int, int] | None]:
    """What tells whether one of the files was replaced."""
    found: list[tuple[int, int, int] | None] = []
    for name in (MANIFEST, NEXT, WEIGHTS):
        state = None
        with suppress(OSError):
            at = os.stat(directory / name)
            state = (at.st_ino, at.st_mtime_ns, at.st_size)
        found.append(state)
    return found
