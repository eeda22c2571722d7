"""Number types of exported files: which target has which, and how far the outputs are off."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..running.arguments import arguments
from ..running.batches import Batches
from ..running.calling import samples_in
from ..running.copying import copied
from .capture import picked
from .compare import Arguments, difference, largest, outputs

FLOATS = {"fp16": torch.float16, "bf16": torch.bfloat16}
DTYPES = {
    "onnx": ("fp16", "int8", "int8-dynamic"),
    "executorch": ("fp16", "int8", "int8-dynamic"),
    "pt2": ("fp16", "bf16"),
}


def check_dtype(engine: str, dtype: str | None, calibration: Any, model: nn.Module) -> None:
    """Refuse a dtype that the engine (a key of `DTYPES`) cannot hold, or for which something is missing.

    Raises:
        ValueError: saying what is possible, or what is missing.
    """
    if dtype is None:
        if calibration is not None:
            raise ValueError("calibration is given without a dtype; name one, such as dtype='int8'")
        return
    if dtype not in DTYPES[engine]:
        elsewhere = [other for other, names in DTYPES.items() if dtype in names]
        there = f"{' and '.join(elsewhere)} can hold {dtype}" if elsewhere else f"no file can hold {dtype}"
        raise ValueError(f"dtype is {dtype!r}; {engine} files can hold {', '.join(DTYPES[engine])}; {there}")
    if dtype == "int8" and calibration is None:
        raise ValueError(
            "dtype int8 fixes the ranges of all activations, which needs samples: give calibration, a few hundred "
            "inputs such as the network will see, or take int8-dynamic, which rounds linear layers only"
        )
    if other := {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()} - {torch.float32}:
        raise ValueError(f"the network is {other.pop()} already; export model.float() with dtype={dtype!r}")


def cast(model: nn.Module, dtype: str) -> nn.Module:
    """A copy that computes in another type; its inputs and outputs stay float32.

    Example:
        >>> cast(nn.Linear(2, 1), "bf16")(torch.ones(1, 2)).dtype
        torch.float32
    """
    made, inside = copied(model).to(FLOATS[dtype]), FLOATS[dtype]
    made.register_forward_pre_hook(lambda _, args, kwargs: _floats_to((args, kwargs), inside), with_kwargs=True)
    made.register_forward_hook(lambda _, args, output: _floats_to(output, torch.float32))
    return made


def calibrating(model: nn.Module, calibration: Iterable[Any] | None, example: Arguments) -> list[Arguments]:
    """All calibration samples as arguments of the forward, in parts of the example's size; else the example."""
    if calibration is None:
        return [example]
    size, parts = samples_in(pytree.tree_leaves(example)), []
    for batch in Batches.of(calibration):
        given = arguments(model, batch)
        for numbers in torch.arange(samples_in(pytree.tree_leaves(given))).split(size):
            # Samples are repeated to fill the last part.
            parts.append(picked(given, numbers[torch.arange(size) % len(numbers)]))
    return parts


def gap(model: nn.Module, run: Callable[[Arguments], list[Tensor]], batches: Iterable[Arguments], dtype: str) -> float:
    """The largest `max |made - exact| / max |exact|` of an output of a file (`run`) over batches.

    Raises:
        ValueError: naming the dtype, if an output is not finite where the network's is.
    """
    differences = []
    for given in batches:
        for made, exact in zip(run(given), outputs(model, given, "the calibration samples"), strict=True):
            if bool((~made.isfinite() & exact.isfinite()).any()):
                raise ValueError(
                    f"in {dtype} outputs are not finite: its range is too small for this network; take another dtype"
                )
            differences.append(difference(made, exact))
    return largest(differences)


def _floats_to(value: Any, dtype: torch.dtype) -> Any:
    def to(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(to, value)
