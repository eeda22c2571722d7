"""A sha256 of content: of plain values and tensors, whatever file they lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def digest(value: Any) -> str:
    """sha256 of a value, equal for equal values: a list and a tuple of the same items, a mapping in any order.

    Args:
        value: None, truth values, numbers, text, bytes, tensors, and lists, tuples and mappings of them.

    Raises:
        TypeError: for anything else.

    Example:
        >>> digest({"a": [1, 2.5]}) == digest({"a": (1, 2.5)}) != digest({"a": [1, 2]})
        True
    """
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    # Every part is preceded by its kind and length, so that no two values are written alike.
    if value is None or isinstance(value, (bool, int, float, str)):
        text = (value if isinstance(value, str) else repr(value)).encode("utf-8", "surrogatepass")
        found.update(f"{type(value).__name__} {len(text)} ".encode() + text)
    elif isinstance(value, bytes):
        found.update(f"bytes {len(value)} ".encode() + value)
    elif isinstance(value, Mapping):
        found.update(f"map {len(value)} ".encode())
        for key in sorted(value, key=lambda key: (type(key).__name__, str(key))):
            _add(found, key)
            _add(found, value[key])
    elif isinstance(value, (list, tuple)):
        found.update(f"list {len(value)} ".encode())
        for item in value:
            _add(found, item)
    elif hasattr(value, "untyped_storage"):
        _add_tensor(found, value)
    else:
        raise TypeError(f"a digest is of numbers, text, tensors, lists and mappings, not of {type(value).__name__}")


def _add_tensor(found: Any, tensor: Tensor) -> None:
    import torch

    found.update(f"tensor {tensor.dtype} {list(tensor.shape)} ".encode())
    if tensor.numel():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
