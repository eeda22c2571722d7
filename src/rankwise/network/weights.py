"""Where the weights of sites come from."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class WeightSource(Protocol):
    """Hands out the layers of a network by name. A network is one; what reads them from a disk one by one is another.

    Planning and fitting ask for the layers of one site at a time, so that a source need never hold all of them.
    """

    def get_submodule(self, target: str) -> nn.Module:
        """The layer of that qualified name, with the values of its parameters."""
