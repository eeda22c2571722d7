"""Layers that read one tensor, such as those of queries, keys and values, share its rows and their products.

Letters: G groups, N rows, D inputs per group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers.kinds import spatial_dims
from .rows import Drawn


class Rows:
    """Rows of the inputs of calls; for the tensor of the last call those of the last call, the same object.

    Attributes:
        first: name of the site that read these rows first.
    """

    def __init__(self) -> None:
        self.first = ""
        self._x: Tensor | None = None
        self._version = 0
        self._kept: Tensor | None = None
        self._rows_GND: Tensor | None = None

    def of(self, site: str, layer: nn.Module, x: Tensor, drawn: Drawn) -> Tensor:
        """As `Drawn.of_inputs`."""
        alone = bool(spatial_dims(layer)) or drawn.positions is not None or x.is_inference()
        if self._rows_GND is None or alone or not self._same(x, drawn.kept):
            self.first, self._x, self._kept = site, None if alone else x, drawn.kept
            self._version = 0 if alone else x._version
            self._rows_GND = drawn.of_inputs(layer, x)
        return self._rows_GND

    def _same(self, x: Tensor, kept: Tensor | None) -> bool:
        if x is not self._x or x._version != self._version:
            return False
        return kept is self._kept or (kept is not None and self._kept is not None and torch.equal(kept, self._kept))


class Products:
    """The last product of rows that several sites need."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._last: tuple[Tensor, Tensor] | None = None

    def get(self, parts: Sequence[Tensor], shift_G1D: Tensor) -> Tensor | None:
        """The product of these tensors less the shift, None if the last one is of others."""
        if self._last is None or [*map(id, parts)] != [*map(id, self._parts)]:
            return None
        last_G1D, product_GDD = self._last
        return product_GDD if torch.equal(last_G1D, shift_G1D) else None

    def put(self, parts: Sequence[Tensor], shift_G1D: Tensor, product_GDD: Tensor) -> None:
        """Keep a product until the next one."""
        self._parts, self._last = list(parts), (shift_G1D, product_GDD)
