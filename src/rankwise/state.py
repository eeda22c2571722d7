"""The tensors of a model as they go to disk: each once, whatever the number of its names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# What safetensors can hold and every version of torch that we support knows.
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
        tensors: every tensor once, under its first name; the model's own tensors, no copies.
        aliases: each further name of a tensor -> the name it stands under in `tensors`.
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
        ValueError: naming the entry that is no plain tensor with values.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        _check(name, value)
        # Tied tensors need not be one Python object: two Parameters may share their memory.
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        stored = first.setdefault(place, name) if value.numel() else name
        if stored == name:
            tensors[name] = value
        else:
            aliases[name] = stored
    return State(tensors=tensors, aliases=aliases)


def _check(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"state {name!r} is a {type(value).__name__}; only tensors can be stored: make it a buffer, or "
            f"return a tensor from get_extra_state()"
        )
    if nn.parameter.is_lazy(value):
        raise ValueError(f"state {name!r} has no shape yet; run the model once so that its lazy layers are set")
    if value.is_meta:
        raise ValueError(f"state {name!r} is on the meta device and has no values; build the model on a real device")
    if value.layout != torch.strided or value.dtype not in NAMES:
        raise ValueError(
            f"state {name!r} is {value.layout}, {value.dtype}; only dense tensors of {', '.join(DTYPES)} can be stored"
        )
