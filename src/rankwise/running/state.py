"""The tensors of a model as they are stored: each once, under all its names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .guards import in_words, refuse_running_copy

# Dtypes of safetensors that every supported version of torch knows.
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
}
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class State:
    """A state dict without repetitions.

    Attributes:
        tensors: every tensor of the model (no copies) under its first name.
        aliases: each further name of a tensor -> its name in `tensors`.
    """

    tensors: dict[str, Tensor]
    aliases: dict[str, str]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by name, aliases included."""
        names = {name: name for name in self.tensors} | self.aliases
        return {name: tuple(self.tensors[stored].shape) for name, stored in names.items()}


def state_of(model: nn.Module) -> State:
    """The state dict of a model, each tensor once.

    Raises:
        ValueError: for an entry that is not a plain tensor with values, a parameter or buffer that the state dict
            leaves out, renames or changes, or a copy for running.
    """
    refuse_running_copy(model)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    state = _state_dict(model)
    for name, value in state.items():
        if problem := _problem(value):
            raise ValueError(f"state {name!r} {problem}")
        stored = first.setdefault(place(value), name) if value.numel() else name
        if stored == name:
            tensors[name] = value
        else:
            aliases[name] = stored
    return State(tensors=tensors, aliases=aliases)


def _state_dict(model: nn.Module) -> dict[str, Any]:
    """The model's own state dict; every parameter and persistent buffer must be in it under its name."""
    try:
        state: dict[str, Any] = model.state_dict(keep_vars=True)
    except TypeError as error:
        raise ValueError(
            f"{type(model).__name__}.state_dict does not take keep_vars=True ({error}); let it hand its options on"
        ) from error
    for name, tensor in _own_tensors(model):
        if (wrong := _differs(name, tensor, state)) is not None:
            raise ValueError(
                f"the state dict of {type(model).__name__} {wrong}, so a saved model could not be loaded; "
                f"remove {_changer(model)}, and save that form yourself"
            )
    return state


def _own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers under all their names, past the model's own `state_dict`."""
    for path, module in model.named_modules(remove_duplicate=False):
        for part, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and part not in module._non_persistent_buffers_set:
                yield (f"{path}.{part}" if path else part), tensor


def _differs(name: str, tensor: Tensor, state: Mapping[str, Any]) -> str | None:
    """What is wrong with a state dict's entry for a tensor, in words; None if nothing is."""
    found = state.get(name)
    if isinstance(found, Tensor):
        same = found is tensor or (found.dtype, place(found)) == (tensor.dtype, place(tensor))
        return None if same else f"holds other values than the network under {name!r}"
    other = next((key for key, value in state.items() if value is tensor), None)
    return f"leaves out {name!r}" if other is None else f"holds {name!r} as {other!r}"


def _changer(model: nn.Module) -> str:
    """Which module changes its state dict, and how."""
    for path, module in model.named_modules():
        where = in_words(module, path)
        if module._state_dict_hooks or module._state_dict_pre_hooks:
            return f"the state_dict hook of {where}"
        for method in ("state_dict", "_save_to_state_dict"):
            if getattr(type(module), method) is not getattr(nn.Module, method):
                return f"the {method} of {where}"
    return "what changes it"


def stored_bytes(model: nn.Module, without: Collection[str] = ()) -> int:
    """The bytes of parameters and persistent buffers, each once; those that cannot be stored count nothing.

    Args:
        without: qualified names of modules whose tensors do not count, unless another module has them too.

    Example:
        >>> stored_bytes(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), without=["1"])
        144
    """
    left_out = tuple(f"{name}." if name else "" for name in without)
    places = {
        place(value): value.numel() * value.element_size()
        for name, value in _own_tensors(model)
        if not name.startswith(left_out) and _problem(value) is None
    }
    return sum(places.values())


def set_state(model: nn.Module, values: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """`load_state_dict` of values that are laid out like the model's own.

    They count as being of the versions that the model's modules have now: some, such as torchvision's MNASNet, refuse
    values without a version, which only a state dict from `state_dict` or `torch.load` has.
    """
    state = OrderedDict(values)
    state._metadata = model.state_dict(keep_vars=True)._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state, strict=strict)


def place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors that are the same memory: tied ones need not be one Python object."""
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def writes(tensor: Tensor) -> int:
    """A number that changes when a tensor is written in place; always 0 for one made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def storage_of(tensor: Tensor) -> int:
    """Where a tensor's memory block begins; 0 for sparse and other tensors without one."""
    return tensor.untyped_storage().data_ptr() if has_memory(tensor) else 0


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor lies in one memory block: it is not sparse, nested, or inside of `torch.vmap` and the like."""
    return tensor.layout is torch.strided and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def interval(tensor: Tensor) -> tuple[int, int]:
    """Offsets of a tensor's first number and of the one after its last in their memory block."""
    start = int(tensor.storage_offset())
    if tensor.numel() == 0:
        return start, start
    steps = zip(tensor.shape, map(int, tensor.stride()), strict=True)
    return start, start + 1 + sum((size - 1) * step for size, step in steps)


def numbers_in(tensors: Iterable[Tensor]) -> int:
    """Numbers in memory; shared ones count once.

    Example:
        >>> weight = torch.zeros(3, 4)
        >>> numbers_in([weight, weight.mT, weight[:2], torch.zeros(5)])
        17
    """
    total = 0
    blocks: dict[int, dict[object, Tensor]] = {}
    for tensor in tensors:
        if storage := storage_of(tensor):
            blocks.setdefault(storage, {})[place(tensor)] = tensor
        else:
            total += tensor.numel()
    for parts in blocks.values():
        ends = sorted(interval(tensor) for tensor in parts.values())
        if all(end <= start for (_, end), (start, _) in pairwise(ends)):
            total += sum(tensor.numel() for tensor in parts.values())
            continue
        # Overlapping views: mark the numbers that any of them covers. Strides leave gaps, so intervals are not enough.
        used = torch.zeros(max(end for _, end in ends), dtype=torch.bool)
        for tensor in parts.values():
            used.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
        total += int(used.sum())
    return total


def _problem(value: object) -> str | None:
    """Why something cannot be stored, None where it can."""
    if not isinstance(value, Tensor):
        return (
            f"is a {type(value).__name__}; only tensors can be stored: make it a buffer, or return a tensor from "
            f"get_extra_state()"
        )
    if nn.parameter.is_lazy(value):
        return "has no shape yet; run the model once so that its lazy layers are set"
    if value.is_meta:
        return "is on the meta device and has no values; build the model on a real device"
    if value.layout != torch.strided or value.dtype not in NAMES:
        return f"is {value.layout}, {value.dtype}; only dense tensors of {', '.join(DTYPES)} can be stored"
    return None
