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


class _OnDisk(NamedTuple):
    path: Path
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class ActivationStore:
    """Holds values (tensors, or nested tuples, lists and dictionaries of them) under keys.

    Args:
        cap: bytes of tensors that stay in memory; further ones go to a temporary directory, which `close` removes.
    """

    def __init__(self, cap: int = DEFAULT_CAP) -> None:
        self.cap = cap
        self.resident = 0
        self.spilled = 0
        self._values: dict[Any, Any] = {}
        self._charged: dict[Any, int] = {}
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, key: Any, value: Any) -> None:
        """Keep a value; a value under the same key is dropped first."""
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
            if isinstance(leaf, _OnDisk):
                leaf.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Drop everything and remove the temporary directory."""
        self._values.clear()
        self._charged.clear()
        self.resident = 0
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _write(self, tensor: Tensor) -> _OnDisk:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="rankwise-")
            logger.info("activations above %.1f GB go to %s", self.cap / 1e9, self._directory.name)
        self._files += 1
        path = Path(self._directory.name) / f"{self._files}.bin"
        mapped = torch.from_file(str(path), shared=True, size=max(tensor.numel(), 1), dtype=tensor.dtype)
        mapped[: tensor.numel()].copy_(tensor.detach().reshape(-1))
        return _OnDisk(path, tensor.shape, tensor.dtype, tensor.device)


def _read(entry: _OnDisk) -> Tensor:
    count = entry.shape.numel()
    mapped = torch.from_file(str(entry.path), shared=True, size=max(count, 1), dtype=entry.dtype)
    return mapped[:count].view(entry.shape).to(entry.device)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if type(value) is tuple:  # most values are, and walking them with pytree is slow
        return [tensor for part in value for tensor in _tensors(part)]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
