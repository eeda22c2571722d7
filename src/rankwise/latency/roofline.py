"""A device described by four numbers: every operator is bound by arithmetic or by memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..files import parse_yaml, read_text, replacing, shown, told
from ..timing.clock import Latency
from .engine import Engine, Work


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a device can do.

    `seconds of an operator = overhead + max(padded MACs / peak, bytes / bandwidth)`

    Attributes:
        name: of the device, for people.
        peak: multiply-accumulates per second, in the network's own precision.
        bandwidth: bytes per second between memory and the arithmetic units.
        tile: channels count as if rounded up to a multiple of it.
        overhead: seconds that every operator costs in addition.

    Raises:
        ValueError: for a number that is not above 0; the overhead may be 0.

    Example:
        >>> device = Device(name="small", peak=1e9, bandwidth=1e9, tile=8, overhead=1e-6)
        >>> device.seconds(macs=1e6, moved=4e3)
        0.001001
    """

    name: str
    peak: float
    bandwidth: float
    tile: int = 1
    overhead: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"roofline: name must be text, not {shown(self.name)}")
        for field in ("peak", "bandwidth", "tile", "overhead"):
            value = getattr(self, field)
            if field == "overhead" and value == 0:
                continue
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
            if not good or (field == "tile" and value != int(value)):
                kind = "a whole number" if field == "tile" else "a number"
                raise ValueError(f"roofline: {field} must be {kind} above 0, not {shown(value)}")

    def seconds(self, *, macs: float, moved: float) -> float:
        """Seconds of one operator with these padded MACs and moved bytes."""
        return self.overhead + max(macs / self.peak, moved / self.bandwidth)

    def padded(self, channels: int) -> int:
        """Channels, rounded up to the tile."""
        return -(-channels // self.tile) * self.tile

    def save(self, path: str | Path) -> None:
        """Write the YAML file that `engine="roofline:FILE.yaml"` reads."""
        with replacing(Path(path)) as new:
            new.write_text(yaml.safe_dump(asdict(self), sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Device:
        """Read the YAML file.

        Raises:
            ValueError: naming the file, if it cannot be read, or a number is missing, unknown or out of range.
        """
        with told(f"cannot read the roofline file '{path}'"):
            plain = parse_yaml(read_text(Path(path)))
            known = {field.name for field in fields(cls)}
            if not isinstance(plain, dict) or not {"peak", "bandwidth"} <= plain.keys() <= known:
                raise ValueError(
                    "a roofline needs peak (MAC/s) and bandwidth (bytes/s), and may have name, tile (channels) and "
                    "overhead (s), nothing else"
                )
            return cls(**{"name": Path(path).stem, **plain})


class RooflineEngine(Engine):
    """Times computed for a device that is not at hand, from its `Device`.

    Products with weights and attention cost what the roofline says. Normalisation and activations are free: engines for
    inference fuse them with the operator before. All other operators that move data (additions, pooling, softmax) cost
    the movement.
    """

    name: ClassVar[str] = "roofline"
    summary: ClassVar[str] = "computed for a device that a file describes"

    def __init__(self, description: Device) -> None:
        super().__init__(threads=1)
        self.description = description

    @property
    def version(self) -> str:
        """The numbers themselves, as other numbers are another device."""
        return " ".join(f"{name}={value}" for name, value in asdict(self.description).items() if name != "name")

    def device(self, network: nn.Module) -> str:
        return self.description.name

    def __str__(self) -> str:
        return f"roofline of {self.description.name}"

    def times(self, works: Mapping[str, Work], **_: Any) -> dict[str, Latency]:
        """See `Engine.times`; each work runs once, to see its operators."""
        return {name: self._time(work) for name, work in works.items()}

    def _time(self, work: Work) -> Latency:
        args, kwargs = work.given
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # the fast path hides a whole layer in one operator
        try:
            with torch.no_grad(), _Operators(self.description) as operators:
                work.module(*args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
        return Latency(median=operators.seconds, low=operators.seconds, high=operators.seconds)


# Places of both factors among the arguments.
_PRODUCTS = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2), "mv": (0, 1), "addmv": (1, 2)}
# Operators without cost: fused with the one before, computed when the file is made, or only new names for memory.
_FREE = {
    *("relu", "relu_", "hardtanh", "hardtanh_", "gelu", "silu", "silu_", "sigmoid", "tanh", "hardswish", "hardswish_"),
    *("hardsigmoid", "leaky_relu", "leaky_relu_", "elu", "native_batch_norm", "_native_batch_norm_legit_no_training"),
    *("cudnn_batch_norm", "native_dropout", "dropout", "clone", "_to_copy", "_unsafe_view", "detach", "lift_fresh"),
    *("empty", "empty_like", "zeros", "zeros_like", "ones", "ones_like", "full", "arange", "scalar_tensor"),
}


class _Operators(TorchDispatchMode):
    """Sums the seconds of all operators that run inside."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _FREE:
            leaves = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, result))}
            if name == "embedding":  # only the rows that are looked up are read
                leaves[id(args[0])] = result
            moved = sum(map(_bytes, leaves.values()))
            self.seconds += self.device.seconds(macs=self._macs(name, args, result), moved=moved)
        return result

    def _macs(self, name: str, args: Any, result: Any) -> int:
        """Padded multiply-accumulates of an operator; 0 if it multiplies no matrices."""
        pad = self.device.padded
        if name == "convolution":
            x, weight, transposed, groups = args[0], args[1], args[6], args[8]
            outputs, inputs = weight.shape[0] // groups, weight.shape[1]
            positions = (x if transposed else result)[:, :1].numel()
            # channels times channels; a depthwise convolution has its channels in the groups
            work = pad(groups) if outputs == inputs == 1 else groups * pad(outputs) * pad(inputs)
            return int(positions * work * weight[0, 0].numel())
        if name in _PRODUCTS:
            left, right = (args[place] for place in _PRODUCTS[name])
            rows = left.shape[:-1].numel()
            return int(rows * pad(left.shape[-1]) * pad(right.shape[-1] if right.dim() > 1 else 1))
        if "attention" in name:
            query, key, value = args[:3]
            pairs = query.shape[:-1].numel() * key.shape[-2]
            return int(pairs * (pad(query.shape[-1]) + pad(value.shape[-1])))
        return 0


def _bytes(leaf: Any) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, Tensor) else 0
