"""The sha256 of plain values and tensors, and of files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def digest(value: Any, *, loose: bool = False) -> str:
    """sha256 of a value, equal for equal values: a list and a tuple of the same items, a mapping in any order.

    Args:
        value: None, truth values, numbers, text, bytes, tensors, arrays, and lists, tuples, mappings and dataclasses of
            them; a TypeError for anything else.
        loose: digest anything else by its name or class.

    Example:
        >>> digest({"a": [1, 2.5]}) == digest({"a": (1, 2.5)}) != digest({"a": [1, 2]})
        True
    """
    found = hashlib.sha256()
    _add(found, value, loose)
    return found.hexdigest()


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _add(found: Any, value: Any, loose: bool) -> None:
    # Kind and length come before every part, so that no two values give the same bytes.
    if value is None or isinstance(value, (bool, int, float, str)):
        text = (value if isinstance(value, str) else repr(value)).encode("utf-8", "surrogatepass")
        found.update(f"{type(value).__name__} {len(text)} ".encode() + text)
    elif isinstance(value, bytes):
        found.update(f"bytes {len(value)} ".encode() + value)
    elif isinstance(value, Mapping):
        found.update(f"map {len(value)} ".encode())
        for key in sorted(value, key=lambda key: (type(key).__name__, str(key))):
            _add(found, key, loose)
            _add(found, value[key], loose)
    elif isinstance(value, (list, tuple)):
        found.update(f"list {len(value)} ".encode())
        for item in value:
            _add(found, item, loose)
    elif hasattr(value, "untyped_storage"):
        _add_tensor(found, value)
    elif is_dataclass(value) and not isinstance(value, type):
        _add(found, {item.name: getattr(value, item.name) for item in fields(value)}, loose)
    elif hasattr(value, "tobytes"):
        found.update(f"array {value.dtype} {list(value.shape)} ".encode() + value.tobytes())
    elif loose:
        _add(found, getattr(value, "__qualname__", type(value).__qualname__), loose)
    else:
        raise TypeError(f"{type(value).__name__} has no digest; only numbers, text, tensors, lists and mappings")


def _add_tensor(found: Any, tensor: Tensor) -> None:
    import torch

    found.update(f"tensor {tensor.dtype} {list(tensor.shape)} ".encode())
    if tensor.numel():
        strided = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
        flat = strided.cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
