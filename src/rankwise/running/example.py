"""The example that represents the data: the first sample, or the whole first batch where one sample is not enough.

MACs are counted for it, graphs are checked on it, and files are exported with it. One sample is not enough if the
network rejects it (pairs in a batch, graphs, batch statistics), answers it differently beside a second one, or does not
reach layers that the batch reaches (experts).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from ..layers.kinds import site_kind
from .batches import Batches
from .calling import call, describe, first_samples, samples_in, tensors_in
from .exclusive import own_thread
from .guards import refuse_unsupported, unwrap
from .pristine import pristine

logger = logging.getLogger("rankwise")

P = ParamSpec("P")
R = TypeVar("R")

# Answers that differ by more, relative to their norm, are different; half precision rounds to less.
OTHERWISE = 0.05


def taking_example(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function also take `example=` by its former name, `example_input=`."""

    @wraps(function)
    def taking(*args: P.args, **kwargs: P.kwargs) -> R:
        if "example_input" in kwargs:
            if "example" in kwargs:
                raise ValueError("example_input= is the former name of example=; give one of them")
            kwargs["example"] = kwargs.pop("example_input")
        return function(*args, **kwargs)

    return taking


def with_example(model: nn.Module, batches: Batches, example: Any = None) -> tuple[Any, Batches]:
    """The example for some data, and the data with the dimension of its samples.

    Samples lie along the first dimension, or along the second where a recurrent or attention layer with
    `batch_first=False` takes the first for time; a sample is then T x 1 x F. Using the whole first batch is logged,
    with the reason.

    Args:
        model: left as found; it is run on one and on two samples, and on the first batch where these miss a layer.
        example: the user's own, which is returned.

    Raises:
        ValueError: the data is empty.

    Example:
        >>> example, batches = with_example(nn.Linear(3, 2), Batches.of([torch.zeros(8, 3)]))
        >>> example.shape, batches.samples
        (torch.Size([1, 3]), 8)
    """
    if example is not None:
        return example, batches if batches.axis is not None else batches.along(_axis(batches.first(), example))
    model, first = unwrap(model), batches.first()
    refuse_unsupported(model)
    kinds = (nn.RNNBase, nn.MultiheadAttention)
    timed = [module for module in model.modules() if isinstance(module, kinds) and not module.batch_first]
    reasons: dict[int, str] = {}
    for axis in (0, 1) if timed and next(tensors_in(first)).dim() > 1 else (0,):
        reason = _unlike(model, first, axis, timed)
        if reason is None:
            return first_samples(first, axis=axis), batches.along(axis)
        reasons[axis] = reason
    axis = 1 if reasons[0] == _ALONG_TIME and reasons[1] != _NOT_ALONG_TIME else 0
    logger.info("the example is the whole first batch %s: %s", describe(first), reasons[axis])
    return first, batches.along(axis)


_ALONG_TIME = "its first dimension is time"
_NOT_ALONG_TIME = "its second dimension holds no samples"


@dataclass
class _Run:
    """One forward pass.

    Attributes:
        outputs: the tensors that the network returned.
        reached: names of the layers that can be sites and got any rows.
        timed: shapes of the inputs of layers with time first.
    """

    outputs: list[Tensor] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    timed: list[tuple[int, ...]] = field(default_factory=list)


def _unlike(model: nn.Module, batch: Any, axis: int, timed: Sequence[nn.Module]) -> str | None:
    """Why the first sample along a dimension does not represent the batch, None where it does."""
    size = samples_in(batch, axis)
    try:
        one = _run(model, first_samples(batch, 1, axis), timed)
        two = _run(model, first_samples(batch, 2, axis), timed) if size > 1 else one
    except ValueError as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        return f"one or two samples are not enough for the network ({reason})"
    shape = tuple(next(tensors_in(batch)).shape)
    if axis == 0 and _cut_along(0, one, two, size) and max(size, shape[1]) > 1:
        return _ALONG_TIME
    if axis == 1 and not _cut_along(1, one, two, size):
        return _NOT_ALONG_TIME
    if size == 1:
        return None
    if not _same_shapes(one, two):
        return "outputs for one sample are not a part of those for two"
    if _far(one.outputs, _first_half(one, two)):
        again = _run(model, first_samples(batch, 1, axis), timed, seed=1)
        if not _far(one.outputs, again.outputs):  # else the network is random, and the difference is noise
            return "the network answers a sample differently when another is beside it"
    layers = {name for name, module in model.named_modules() if site_kind(module)}
    if layers - one.reached and (missed := _run(model, batch, timed).reached - one.reached):
        return f"a single sample does not reach {', '.join(sorted(missed)[:3])}{' and others' * (len(missed) > 3)}"
    return None


def _run(model: nn.Module, batch: Any, timed: Sequence[nn.Module], seed: int = 0) -> _Run:
    seen = _Run()
    names = {module: name for name, module in model.named_modules() if site_kind(module)}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next(tensors_in([*args, *kwargs.values()]), None)
        if given is None:
            return
        if module in names and given.numel():
            seen.reached.add(names[module])
        if module in timed and given.dim() == 3:
            seen.timed.append(tuple(given.shape))

    with pristine(model):
        for module in {*names, *timed}:
            module.register_forward_pre_hook(own_thread(look), with_kwargs=True)
        torch.manual_seed(seed)
        seen.outputs = list(tensors_in(call(model, batch)))
    return seen


def _cut_along(dimension: int, one: _Run, two: _Run, size: int) -> bool:
    """Whether a layer with time first got one sample, and two, along a dimension."""
    pairs = zip(one.timed, two.timed, strict=False)
    return any(a[dimension] == 1 and b[dimension] == min(size, 2) for a, b in pairs)


def _same_shapes(one: _Run, two: _Run) -> bool:
    """Whether two samples give outputs of one sample's sizes, or twice that; or twice as many outputs."""
    if len(two.outputs) not in (len(one.outputs), 2 * len(one.outputs)):
        return False
    return all(
        a.dim() == b.dim() and all(n in (m, 2 * m) for m, n in zip(a.shape, b.shape, strict=True))
        for a, b in zip(one.outputs, two.outputs, strict=False)
    )


def _first_half(one: _Run, two: _Run) -> list[Tensor]:
    """The first sample's part of the outputs for two samples; an output without samples is taken from one."""
    many = len(two.outputs) != len(one.outputs)
    return [
        b[tuple(slice(0, side) for side in a.shape)] if many or a.shape != b.shape else a
        for a, b in zip(one.outputs, two.outputs, strict=False)
    ]


def _far(outputs: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether a floating output differs from its counterpart beyond rounding."""
    for a, b in zip(outputs, others, strict=True):
        if a.is_floating_point() and a.shape == b.shape:
            same = (a == b) | (a.isnan() & b.isnan())
            off = torch.where(same, 0.0, a.double() - b.double()).norm()
            if not off <= OTHERWISE * b.double().nan_to_num(0.0, 0.0, 0.0).norm():
                return True
    return False


def _axis(batch: Any, example: Any) -> int:
    """The dimension of a batch's samples, seen from an example of fewer samples."""
    whole, part = next(tensors_in(batch)).shape, next(tensors_in(example)).shape
    shorter = [axis for axis, (m, n) in enumerate(zip(whole, part, strict=False)) if m > n]
    return 1 if len(whole) == len(part) and shorter == [1] else 0
