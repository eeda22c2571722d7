"""The second moment of the loss's gradient at a site's output, and the two-sided metric that follows from it.

Letters: G groups, T outputs per group, D numbers in a row of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linalg.metric import Metric
from ..linalg.two_sided import TwoSided
from .shrinkage import DAMPING, shrinkage


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Moment of the gradients at one site's output.

    Attributes:
        samples: seen so far.
        second_GTT: mean over samples of `sum over positions of g g^T`, per group; float64.
        lookups_DD: the same at the rows that a tied embedding looks up, while `second_GTT` belongs to its head.
        rows_GT: mean over samples of the squared gradients of the weight, summed over each of its rows.
        cross_GTT: mean over samples of `sum over positions of g y^T`, y the output without the bias: the gradient of
            the weight times the weight's transpose. Only of a loss that the user gives.
    """

    samples: int
    second_GTT: Tensor
    lookups_DD: Tensor | None = None
    rows_GT: Tensor | None = None
    cross_GTT: Tensor | None = None

    def metric(self, inputs: Sequence[Metric], shrink: float = 0.0) -> TwoSided:
        """The metric of inputs and outputs, with `(1 - s) G + s trace(G) / T I` for the outputs, up to scale.

        Args:
            inputs: metric of each group.
            shrink: `s` below 1, added to the shrinkage that few samples need. Gradients at the positions of one sample
                depend on each other, so samples are counted, not positions.
        """
        if self.lookups_DD is not None:
            # A metric of two uses only needs the sums of the moments, which few samples give well: no shrinkage.
            return TwoSided(inputs=inputs, uses=(self.second_GTT[0], self.lookups_DD))
        trace, squares = float(self.second_GTT.diagonal(dim1=1, dim2=2).sum()), float(self.second_GTT.square().sum())
        share = shrinkage(trace, squares, self.samples, self.second_GTT.shape[0] * self.second_GTT.shape[1])
        added = max(DAMPING, share / (1 - share))
        return TwoSided.of(inputs, self.second_GTT, (added + shrink) / (1 - shrink))

    def merge(self, other: Gradients) -> Gradients:
        """The moment of both sets of samples together."""
        samples = self.samples + other.samples
        share = other.samples / samples

        def both(ours: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            return None if ours is None or theirs is None else torch.lerp(ours, theirs, share)

        return Gradients(
            samples=samples,
            second_GTT=torch.lerp(self.second_GTT, other.second_GTT, share),
            lookups_DD=both(self.lookups_DD, other.lookups_DD),
            rows_GT=both(self.rows_GT, other.rows_GT),
            cross_GTT=both(self.cross_GTT, other.cross_GTT),
        )
