"""The random generators that a forward may draw from; several networks can draw the same numbers."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Source(NamedTuple):
    get: Callable[[], Any]
    set: Callable[[Any], Any]
    seed: Callable[[int], Any]


class Randomness:
    """The generators of some networks of one structure: the global ones, and those that modules hold as attributes.

    The global ones are PyTorch's for the CPU and the networks' devices, `random`'s, and NumPy's where it is loaded.
    Generators held by modules correspond to each other in order.

    Args:
        models: the networks, such as the dense one and its copy.

    Example:
        >>> randomness = Randomness(nn.Linear(2, 2))
        >>> randomness.seed(0)
        >>> state, first = randomness.state(), torch.rand(1)
        >>> randomness.restore(state)
        >>> bool(torch.rand(1) == first)
        True
    """

    def __init__(self, *models: nn.Module) -> None:
        self._shared = list(_global_sources(models[0]))
        self._own = [list(_own_sources(model)) for model in models]

    def state(self) -> list[Any]:
        """The state of the global generators and of those that the first network holds."""
        return [source.get() for source in (*self._shared, *self._own[0])]

    def restore(self, state: list[Any]) -> None:
        """Put all networks into a state."""
        for own in self._own:
            for source, value in zip((*self._shared, *own), state, strict=True):
                source.set(value)

    def seed(self, number: int) -> None:
        """Put all networks into the state of a seed, such as the index of a batch."""
        for own in self._own:
            for source in (*self._shared, *own):
                source.seed(number % 2**32)

    def drawn_since(self, state: list[Any]) -> bool:
        """Whether a number was drawn since a state was taken."""
        return not all(map(_same, self.state(), state))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore the states on leaving."""
        state = self.state()
        try:
            yield
        finally:
            self.restore(state)


def _global_sources(model: nn.Module) -> Iterator[_Source]:
    yield _Source(torch.get_rng_state, torch.set_rng_state, torch.default_generator.manual_seed)
    for device in sorted({p.device for p in model.parameters() if p.device.type != "cpu"}, key=str):
        yield _of_device(device)
    yield _Source(random.getstate, random.setstate, random.seed)
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        yield _Source(lambda: numpy_random.get_state(legacy=False), numpy_random.set_state, numpy_random.seed)


def _of_device(device: torch.device) -> _Source:
    module: Any = torch.get_device_module(device)
    at = () if device.type == "mps" else (device,)

    def seed(number: int) -> None:
        module.set_rng_state(torch.Generator(device).manual_seed(number).get_state(), *at)

    return _Source(lambda: module.get_rng_state(*at), lambda state: module.set_rng_state(state, *at), seed)


def _own_sources(model: nn.Module) -> Iterator[_Source]:
    """The generators that are attributes of modules."""
    numpy_random: Any = sys.modules.get("numpy.random")
    held = {id(value): value for module in model.modules() for value in vars(module).values()}
    for value in held.values():
        if isinstance(value, torch.Generator):
            yield _Source(value.get_state, value.set_state, value.manual_seed)
        elif isinstance(value, random.Random):
            yield _Source(value.getstate, value.setstate, value.seed)
        elif numpy_random is not None and isinstance(value, numpy_random.Generator):
            yield _of_numpy(value, numpy_random)
        elif numpy_random is not None and isinstance(value, numpy_random.RandomState):
            yield _Source(partial(value.get_state, legacy=False), value.set_state, value.seed)


def _of_numpy(generator: Any, numpy_random: Any) -> _Source:
    bits = generator.bit_generator

    def put(state: Any) -> None:
        bits.state = state

    return _Source(lambda: bits.state, put, lambda number: put(type(bits)(number).state))


def _same(a: Any, b: Any) -> bool:
    """Whether two states are equal; NumPy's are dictionaries that hold arrays."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(_same(a[key], b[key]) for key in a)
    return bool((a == b).all()) if hasattr(a, "all") else bool(a == b)
