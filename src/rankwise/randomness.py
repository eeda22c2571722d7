"""The state of every generator that a forward may draw random numbers from."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RandomState:
    """Where torch's generators, Python's and numpy's stand.

    Example:
        >>> state = RandomState.now()
        >>> drawn = torch.rand(2)
        >>> state.restore()
        >>> torch.equal(torch.rand(2), drawn)
        True
    """

    cpu: Tensor
    devices: tuple[tuple[torch.device, Tensor], ...]
    python: Any
    numpy: Any

    @classmethod
    def now(cls, devices: Iterable[torch.device] = ()) -> RandomState:
        """The state at this moment.

        Args:
            devices: beside the CPU.
        """
        numpy = sys.modules.get("numpy")  # whoever draws from it has imported it
        return cls(
            cpu=torch.get_rng_state(),
            devices=tuple((each, _home(each).get_rng_state(each)) for each in devices if each.type in ("cuda", "xpu")),
            python=random.getstate(),
            numpy=None if numpy is None else numpy.random.get_state(),
        )

    def restore(self) -> None:
        """Go back to it."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices:
            _home(device).set_rng_state(state, device)
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)


def seed_all(seed: int) -> None:
    """Let all generators begin at a seed: two networks that draw in the same order draw the same numbers."""
    torch.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)


def _home(device: torch.device) -> Any:
    return getattr(torch, device.type)
