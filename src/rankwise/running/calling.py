"""One batch, and running a model on it.

A *batch* is what the model is called with: a tensor (`model(x)`), a tuple or list (`model(*x)`), or a mapping
(`model(**x)`).

A network may write into its inputs, but the user's batches must not change. So the first batch of each shape is copied.
If the network leaves that copy alone, as most do, later batches of that shape are passed without a copy, and checked
after every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from .state import writes

# Network -> shapes and modes of the batches that it is known to leave alone.
_ALONE: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


class DataError(ValueError):
    """Our own error about a batch, raised from inside a forward; `call` passes it on unchanged."""


def call(model: nn.Module, batch: Any, *, index: int | None = None) -> Any:
    """Run a model on a batch: `model(x)`, `model(*x)` or `model(**x)`.

    Tensors are moved to the device of the model's first parameter. A half-precision model (its first floating
    parameter is float16 or bfloat16) gets floating inputs in its own dtype; otherwise dtypes are left alone.

    Args:
        index: of the batch, for the message.

    Raises:
        ValueError: the model raises on this batch; the message has the batch's shapes and the original message. An
            out-of-memory error of the device is passed on.

    Example:
        >>> call(nn.Linear(3, 2), torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """
    try:
        with handed(model, batch, index) as given:
            if isinstance(given, Mapping):
                return model(**given)
            if isinstance(given, (tuple, list)) and not isinstance(given, PackedSequence):
                return model(*given)
            return model(given)
    except (torch.cuda.OutOfMemoryError, DataError):
        raise
    except Exception as error:
        which = "the example batch" if index is None else f"batch {index}"
        raise ValueError(
            f"{type(model).__name__} rejects {which} {describe(batch)}: {type(error).__name__}: {error}. "
            "A tuple or list is passed as model(*batch), a mapping as model(**batch); "
            "labels are stripped with inputs_only(loader)"
        ) from error


def forget(model: nn.Module) -> None:
    """Forget which batches a network leaves alone: it may have changed."""
    _ALONE.pop(model, None)


@contextmanager
def handed(model: nn.Module, batch: Any, index: int | None = None) -> Iterator[Any]:
    """The batch in a network's dtype and on its device for one call; a copy where the network may write into it.

    Raises:
        ValueError: if the network writes into a batch after it left others of that shape alone.

    Example:
        >>> batch = torch.ones(2)
        >>> with handed(nn.Identity(), batch) as given:
        ...     _ = given.mul_(3)
        >>> batch
        tensor([1., 1.])
    """
    key = f"{model.training} {describe(batch)}"
    lent = key in _ALONE.get(model, ())
    given = prepared(model, batch) if lent else apart(model, batch)
    tensors = list(tensors_in(given))
    before = [writes(tensor) for tensor in tensors]
    yield given
    wrote = {id(tensor) for tensor, version in zip(tensors, before, strict=True) if writes(tensor) != version}
    if lent and not wrote.isdisjoint(map(id, tensors_in(batch))):
        which = "the example batch" if index is None else f"batch {index}"
        raise DataError(
            f"{type(model).__name__} wrote into {which} {describe(batch)}, though it left others of that shape alone: "
            "the batch has changed; let forward work on a copy (x = x.clone())"
        )
    if not wrote and not any(tensor.is_inference() for tensor in tensors_in(batch)):
        _ALONE.setdefault(model, set()).add(key)


def apart(model: nn.Module, batch: Any) -> Any:
    """The batch as `prepared` gives it, without any tensor of the user's."""
    theirs = {id(tensor) for tensor in tensors_in(batch)}
    copies: dict[int, torch.Tensor] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in theirs and id(tensor) not in copies:
            with torch.inference_mode(False), torch.set_grad_enabled(torch.is_grad_enabled()):
                copies[id(tensor)] = tensor.clone()
        return copies.get(id(tensor), tensor)

    return map_tensors(copy, prepared(model, batch))


def prepared(model: nn.Module, batch: Any) -> Any:
    """The batch as `call` passes it: on the model's device, floating tensors in the dtype of a half-precision model."""
    parameters = list(model.parameters())
    floating = next((p.dtype for p in parameters if p.is_floating_point()), None)
    if parameters:
        batch = to_device(batch, parameters[0].device)
    if floating in (torch.float16, torch.bfloat16):
        batch = map_tensors(lambda t: t.to(floating) if t.is_floating_point() else t, batch)
    return batch


def to_device(batch: Any, device: torch.device | str) -> Any:
    """The batch with every tensor on `device`."""
    return map_tensors(lambda t: t.to(device), batch)


def first_samples(batch: Any, count: int = 1, axis: int = 0) -> Any:
    """The first samples of a batch: tensors with as many entries as it has samples keep the first few.

    Args:
        axis: dimension of the first tensor along which samples lie. If it is 1, other tensors may have them along
            their first dimension.

    Example:
        >>> first_samples({"x": torch.zeros(8, 3), "scale": torch.zeros(5)})["x"].shape
        torch.Size([1, 3])
    """
    size = samples_in(batch, axis)
    if pictures := _pictures(batch):
        return _map_lists(lambda values: values[:count] if len(values) == len(pictures) else values, batch)

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        for dimension in range(axis, -1, -1):
            if tensor.dim() > dimension and tensor.shape[dimension] == size:
                return tensor.narrow(dimension, 0, min(count, size))
        return tensor

    return map_tensors(cut, batch)


def own_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if it is a view that keeps a larger memory block alive."""
    whole = tensor.layout is not torch.strided or tensor.untyped_storage().nbytes() <= tensor.nbytes
    return tensor if whole else tensor.clone()


def samples_in(batch: Any, axis: int = 0) -> int:
    """The number of samples in a batch: the length of its first tensor along a dimension, or of a detector's list.

    Example:
        >>> samples_in(([torch.zeros(3, 8, 8), torch.zeros(3, 6, 9)],))
        2
    """
    if pictures := _pictures(batch):
        return len(pictures)
    first = next(tensors_in(batch), None)
    if first is None:
        raise ValueError(f"a batch must hold a tensor, got {describe(batch)}; convert arrays with torch.as_tensor")
    return first.shape[axis] if first.dim() > axis else 1


def _pictures(batch: Any) -> list[torch.Tensor]:
    """The first argument if it is a list of single pictures, without a dimension for samples; else an empty list."""
    arguments = list(batch.values()) if isinstance(batch, Mapping) else batch
    first = arguments[0] if isinstance(arguments, (tuple, list)) and arguments else None
    single = isinstance(first, list) and all(isinstance(part, torch.Tensor) and part.dim() == 3 for part in first)
    return list(first) if single and first else []


def _map_lists(change: Callable[[list[Any]], list[Any]], batch: Any) -> Any:
    """The batch with the lists among its arguments changed."""
    if isinstance(batch, Mapping):
        return {key: change(value) if isinstance(value, list) else value for key, value in batch.items()}
    return type(batch)(change(value) if isinstance(value, list) else value for value in batch)


def describe(batch: Any) -> str:
    """The shapes in a batch, for messages.

    Example:
        >>> describe({"x": torch.zeros(8, 3), "flag": True})
        '{x: (8, 3), flag: bool}'
    """
    if isinstance(batch, torch.Tensor):
        return str(tuple(batch.shape))
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, (tuple, list)):
        return "[" + ", ".join(describe(value) for value in batch) + "]"
    return type(batch).__name__


def tensors_in(batch: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a batch, in order."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_in(value)


def tensor_leaves(values: Any) -> list[torch.Tensor]:
    """Every tensor in nested values of any kind that `torch.utils._pytree` knows."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], batch: Any) -> Any:
    """The batch with every tensor changed, in containers of the same kind (mappings become dicts)."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(change, value) for key, value in batch.items()}
    if isinstance(batch, PackedSequence):  # its indices move with its data, its batch sizes stay on the CPU
        data = change(batch.data)
        orders = (batch.sorted_indices, batch.unsorted_indices)
        return PackedSequence(data, batch.batch_sizes, *(o if o is None else o.to(data.device) for o in orders))
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(change, value) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(change, value) for value in batch)
    return batch
