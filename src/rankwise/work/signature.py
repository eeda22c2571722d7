"""What identifies a run: the network, the data, the options, and versions and devices that affect rounding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from ..files import digest
from ..network.sites import fingerprint
from ..ranks import Rule
from ..running.randomness import Randomness


def identity(model: nn.Module, data: Iterable[Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a run, in plain values.

    Raises:
        ValueError: for data that differs from pass to pass.
    """
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    with Randomness(model).kept():
        digested = None if data is None else _data(data)
    return {
        "rankwise": version("rankwise"),
        "torch": torch.__version__,
        "threads of torch": torch.get_num_threads(),
        "device": sorted({str(tensor.device) for _, tensor in tensors}),
        "layers": digest([fingerprint(model), re.sub(r"0x[0-9a-f]+", "", repr(model))]),
        "weights": digest(tensors, loose=True),
        "data": digested,
        **{name: _plain(value) for name, value in options.items()},
    }


def _data(batches: Iterable[Any]) -> str:
    """The digest of all batches in their order."""
    digests = [digest(batch, loose=True) for batch in batches]
    if digests and digest(next(iter(batches)), loose=True) != digests[0]:
        raise ValueError(
            "the data, or its order, differs from pass to pass, so a stopped run could not resume with the same bits: "
            "use shuffle=False, or a list of batches; or leave the checkpoint out"
        )
    return digest(digests)


def _plain(value: Any) -> Any:
    """An option in JSON types."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Rule):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor) or is_dataclass(value):
        return digest(value, loose=True)
    return getattr(value, "__qualname__", type(value).__qualname__)
