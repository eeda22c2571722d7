"""Where the weights of sites come from."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class WeightSource(Protocol):
    """Gives the layers of a network by name: the network itself, or a reader that loads them one by one.

    Planning and fitting ask for the layers of one site at a time, so a source never needs to hold all of them.
    """

    def get_submodule(self, target: str) -> nn.Module:
        """The layer of that qualified name, with the values of its parameters."""
