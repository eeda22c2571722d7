"""What follows from the gradients of a weight, sample by sample: squares of its rows, and its product with the weight.

With the gradient `g_p` at the output and the input `x_p` at position p, the gradient of the weight for one sample is
`D = sum_p g_p x_p^T`. FWSVD weighs the rows of the weight by `sum_j E D_ij^2`. How the loss changes to first order when
a component `u u^T W` of the weight leaves is `-u^T E[D] W^T u`, and `D W^T = sum_p g_p y_p^T`, y the output without the
bias: the weight itself need not be known.

Letters: G groups, N rows (positions of all samples), B samples, P positions of a sample, T outputs and D inputs per
group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..network.site import Site
from .rows import input_rows, output_rows


class WeightGradients:
    """Adds up, batch by batch.

    Args:
        crosses: whether the product with the weight is added up: only for a loss whose gradients have a mean that says
            something.
    """

    def __init__(self, crosses: bool) -> None:
        self.crosses = crosses
        self.squares: dict[str, Tensor] = {}
        self.products: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, site: Site, layer: Any, x: Tensor, y: Tensor, g_GNT: Tensor, samples: int) -> None:
        """Add one call of a layer.

        Args:
            x, y: its input and output.
            g_GNT: rows of the gradient at the output, the positions of each sample after those of the one before.
            samples: in the batch.

        Raises:
            ValueError: for a layer that is called several times, or whose rows cannot be divided among the samples.
        """
        if len(site.calls) > 1:
            raise ValueError(
                f"site {site.name!r} is called {len(site.calls)} times in one forward, and the gradients of its weight "
                'are those of all calls together; leave it out (only=), or collect without gradients="weights"'
            )
        x_GND = input_rows(layer, x, None)
        if x_GND.shape[1] != g_GNT.shape[1] or g_GNT.shape[1] % samples:
            raise ValueError(
                f"site {site.name!r}: {x_GND.shape[1]} rows of inputs and {g_GNT.shape[1]} of gradients cannot be "
                f'divided among {samples} samples; leave it out (only=), or collect without gradients="weights"'
            )
        squares_GT = g_GNT.new_zeros(len(g_GNT), g_GNT.shape[2], dtype=torch.float64)
        for g_GPT, x_GPD in zip(g_GNT.chunk(samples, 1), x_GND.chunk(samples, 1), strict=True):
            squares_GT += (g_GPT.mT @ x_GPD).square().sum(2).double()
        self._add(self.squares, site.name, squares_GT)
        if self.crosses:
            bias = getattr(layer, "bias", None)
            y_GNT = output_rows(layer, y.detach(), None)
            if bias is not None:
                y_GNT = y_GNT - bias.to(y_GNT).view(len(y_GNT), 1, -1)
            self._add(self.products, site.name, (g_GNT.mT @ y_GNT).double())

    def means(self, name: str, samples: int) -> dict[str, Tensor]:
        """The fields `rows_GT` and `cross_GTT` of `Gradients` for a site, as far as there are any."""
        known = {"rows_GT": self.squares, "cross_GTT": self.products}
        return {field: sums[name] / samples for field, sums in known.items() if name in sums}

    def _add(self, sums: dict[str, Tensor], name: str, value: Tensor) -> None:
        sums[name] = sums[name] + value if name in sums else value
