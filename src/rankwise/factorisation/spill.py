"""Activations of all batches, in memory up to a cap and in memory-mapped files above it."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

logger = logging.getLogger("rankwise")

DEFAULT_CAP = 2**30
MOST_MAPPED = 20_000  # Linux lets a process map 65,530 files


class _OnDisk(NamedTuple):
    file: Tensor | Path  # a mapped file without a name, or the path of one to map on reading
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class ActivationStore:
    """Holds values (tensors, or nested tuples, lists and dictionaries of them) under keys.

    Args:
        cap: bytes of tensors that stay in memory; the rest goes to a temporary directory, which `close` removes. Where
            the system allows it, files are unlinked as soon as they are mapped: even a killed process leaves none.
    """

    def __init__(self, cap: int = DEFAULT_CAP) -> None:
        self.cap = cap
        self.resident = 0
        self.spilled = 0
        self._values: dict[Any, Any] = {}
        self._charged: dict[Any, int] = {}
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._files = self._mapped = 0

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, key: Any, value: Any) -> None:
        """Keep a value, in place of one under the same key."""
        self.drop(key)
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value))
        if self.resident + size <= self.cap:
            self.resident += size
            self._charged[key] = size
        else:
            value = pytree.tree_map_only(Tensor, self._write, value)
            self.spilled += size
        self._values[key] = value

    def get(self, key: Any) -> Any:
        """The value under a key; a spilled tensor is a view of its file."""
        value = self._values[key]
        if key in self._charged:
            return value
        return pytree.tree_map_only(_OnDisk, _read, value, is_leaf=lambda leaf: isinstance(leaf, _OnDisk))

    def __contains__(self, key: Any) -> bool:
        return key in self._values

    def drop(self, key: Any) -> None:
        """Forget a value and free its memory or its file."""
        value = self._values.pop(key, None)
        if key in self._charged:
            self.resident -= self._charged.pop(key)
            return
        for leaf in pytree.tree_leaves(value, is_leaf=lambda leaf: isinstance(leaf, _OnDisk)):
            if isinstance(leaf, _OnDisk) and isinstance(leaf.file, Path):
                leaf.file.unlink(missing_ok=True)
            self._mapped -= isinstance(leaf, _OnDisk) and isinstance(leaf.file, Tensor)

    def close(self) -> None:
        """Drop everything and remove the temporary directory."""
        self._values.clear()
        self._charged.clear()
        self.resident = self._mapped = 0
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _write(self, tensor: Tensor) -> _OnDisk:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="rankwise-")
            logger.info("activations above %.1f GB go to %s", self.cap / 1e9, self._directory.name)
        self._files += 1
        path = Path(self._directory.name) / f"{self._files}.bin"
        mapped = _map(path, tensor.shape, tensor.dtype)
        mapped.copy_(tensor.detach())
        return _OnDisk(mapped if self._unnamed(path) else path, tensor.shape, tensor.dtype, tensor.device)

    def _unnamed(self, path: Path) -> bool:
        """Unlink a mapped file; False where it keeps its name, and is mapped again on reading."""
        if self._mapped >= MOST_MAPPED:
            return False
        try:
            path.unlink()
        except PermissionError:  # Windows
            return False
        self._mapped += 1
        return True


def _read(entry: _OnDisk) -> Tensor:
    mapped = entry.file if isinstance(entry.file, Tensor) else _map(entry.file, entry.shape, entry.dtype)
    return mapped.to(entry.device)


def _map(path: Path, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    count = shape.numel()
    return torch.from_file(str(path), shared=True, size=max(count, 1), dtype=dtype)[:count].view(shape)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if type(value) is tuple:  # the usual case, and pytree is slow
        return [tensor for part in value for tensor in _tensors(part)]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
