"""The shape of a weight as formats read it: per group, and with the directions of its kernel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import nn

from ..layers.kinds import is_convolution, site_kind
from ..network.site import Site
from .base import LowRank
from .weights import read

# Sizes of the modes that outputs or inputs are read as.
Modes = tuple[int, ...]


class Shape(NamedTuple):
    """Groups, outputs and channels per group, and the kernel (() for a linear layer) of a weight."""

    groups: int
    outputs: int
    channels: int
    kernel: tuple[int, ...]

    @classmethod
    def of_site(cls, site: Site) -> Shape:
        return cls(site.groups, site.out_features // site.groups, site.weight_shape[1], site.kernel_size)

    @classmethod
    def of_layer(cls, layer: Any) -> Shape:
        """The shape of a dense layer, or of the chain that replaced it."""
        if is_convolution(layer.kind if isinstance(layer, LowRank) else site_kind(layer)):
            groups = layer.groups
            return cls(groups, layer.out_channels // groups, layer.in_channels // groups, tuple(layer.kernel_size))
        if isinstance(layer, (nn.Linear, LowRank)):
            return cls(1, layer.out_features, layer.in_features, ())
        outputs, inputs = read(layer).shape
        return cls(1, outputs, inputs, ())

    def unlike(self, outputs: Modes | None, inputs: Modes | None) -> str | None:
        """Why its outputs and inputs cannot be read as modes of these sizes; None if they can, or none are given."""
        for side, number, modes in (("outputs", self.outputs, outputs), ("inputs", self.channels, inputs)):
            if modes is not None and math.prod(modes) != number:
                each = " in each group" * (self.groups > 1)
                product = " x ".join(map(str, modes))
                return f"reads {math.prod(modes):,} {side} as {product}, and here are {number:,}{each}"
        return None

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def directions(self) -> str:
        """Letters of the kernel's directions, from planes, rows, columns: "w", "hw" or "zhw"."""
        return "zhw"[3 - len(self.kernel) :]
