"""Roofline of a network (Williams, Waterman, Patterson): how close each layer comes to the limits of the machine."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..network.find import find
from ..running.arguments import arguments
from ..running.exclusive import own_thread
from ..running.guards import unwrap
from ..running.pristine import evaluating, rows_kept
from ..running.verbs import verb
from ..timing.clock import torch_threads
from .limits import Limits, machine_limits


@dataclass(frozen=True, kw_only=True)
class LayerRoofline:
    """One layer against the machine; the layers of a chain stand alone.

    Attributes:
        name: qualified name.
        kind: such as "linear" or "conv2d".
        macs: multiply-accumulates in one forward.
        bytes: of inputs, weights and outputs, each moved once.
        seconds: in one forward, median.
        limit_seconds: the least that the machine allows.
    """

    name: str
    kind: str
    macs: int
    bytes: int
    seconds: float
    limit_seconds: float

    @property
    def intensity(self) -> float:
        """Multiply-accumulates per byte."""
        return self.macs / self.bytes

    @property
    def macs_per_second(self) -> float:
        """Achieved multiply-accumulates per second."""
        return self.macs / self.seconds

    @property
    def share(self) -> float:
        """Achieved speed over the limit; above 1 if weights come from a cache, which the limit leaves out."""
        return self.limit_seconds / self.seconds


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """The layers of a network against the machine.

    Attributes:
        layers: in the order of the forward.
        limits: of the machine, at the same number of threads.
        seconds: one whole forward, median, including everything between the layers.
        not_timed: counted layers that run inside others, and have no time of their own.
    """

    layers: tuple[LayerRoofline, ...]
    limits: Limits
    seconds: float
    not_timed: tuple[str, ...]


@verb
def roofline(
    model: nn.Module, example: Any, threads: int = 1, *, rounds: int = 20, warmup: int = 3, limits: Limits | None = None
) -> Roofline:
    """Time every layer and compare it with the limits of the machine.

    `limit_seconds = max(macs / peak MACs per second, bytes / bandwidth)`, `share = limit_seconds / seconds`.

    All layers are timed in every round, inside the forward of the network. So each finds the caches as the layers
    before it leave them, and a machine that slows down for a while slows all of them.

    Args:
        model: dense or compressed.
        example: the input, as for `find`.
        threads: of the CPU; torch's own setting is restored.
        rounds: measured forwards.
        warmup: forwards before them.
        limits: of the machine, measured by default.

    Raises:
        ValueError: if `threads`, `rounds` or `warmup` is out of range, or the model has no layer to time.

    Example:
        >>> for layer in roofline(small, torch.randn(1, 3, 224, 224)).layers:  # doctest: +SKIP
        ...     print(f"{layer.name:30} {layer.intensity:6.1f} MAC/B {layer.share:6.1%}")

    Source: Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model for Multicore
    Architectures", 2009, Communications of the ACM 52(4).
    """
    for name, value, least in (("threads", threads, 1), ("rounds", rounds, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    model = unwrap(model)
    sites = find(model, example)
    counted = {site.name: site for site in sites.values() if site.macs}
    layers = {model.get_submodule(name): site.name for site in counted.values() for name in (site.name, *site.aliases)}
    weight = next(model.parameters(), torch.zeros(0))
    with torch.no_grad(), evaluating(model), rows_kept(model), torch_threads(threads):
        args, kwargs = arguments(model, example)
        clock = _Clock(layers, weight.device)
        with clock.attached():
            for turn in range(warmup + rounds):
                if turn == warmup:
                    clock.forget()
                clock.forward(lambda: model(*args, **kwargs))
    if not clock.seconds:
        raise ValueError(f"{type(model).__name__} calls no linear or convolutional layer for this input")
    limits = limits or machine_limits(threads, device=weight.device, dtype=weight.dtype)
    return Roofline(
        layers=tuple(
            LayerRoofline(
                name=name,
                kind=site.kind,
                macs=site.macs,
                bytes=clock.bytes[name],
                seconds=statistics.median(clock.seconds[name]),
                limit_seconds=limits.seconds(site.macs, clock.bytes[name]),
            )
            for name, site in counted.items()
            if name in clock.seconds
        ),
        limits=limits,
        seconds=statistics.median(clock.whole),
        not_timed=tuple(name for name in counted if name not in clock.seconds),
    )


class _Clock:
    """Seconds and bytes of layers by name, and seconds of whole forwards."""

    def __init__(self, layers: dict[nn.Module, str], device: torch.device) -> None:
        self.layers, self.device = layers, device
        self.began = 0.0
        self.forget()

    def forget(self) -> None:
        """Drop what was measured so far."""
        self.whole: list[float] = []
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.bytes: dict[str, int] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, the layers are timed."""
        with ExitStack() as stack:
            for layer in self.layers:
                stack.callback(layer.register_forward_pre_hook(own_thread(self._before)).remove)
                stack.callback(layer.register_forward_hook(own_thread(self._after), with_kwargs=True).remove)
            yield

    def forward(self, run: Any) -> None:
        """One forward; several calls of one layer add up."""
        self.turn: defaultdict[str, float] = defaultdict(float)
        self.moved: defaultdict[str, int] = defaultdict(int)
        began = self._now()
        run()
        self.whole.append(self._now() - began)
        for name, seconds in self.turn.items():
            self.seconds[name].append(seconds)
        self.bytes = dict(self.moved)

    def _before(self, layer: nn.Module, args: Any) -> None:
        self.began = self._now()

    def _after(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name = self.layers[layer]
        self.turn[name] += self._now() - self.began
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
        self.moved[name] += sum(tensor.nbytes for tensor in (*tensors, *layer.parameters()))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
