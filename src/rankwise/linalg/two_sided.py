"""The metric of a whole layer: `||G^(1/2) (W - V) Sigma^(1/2)||_F`, with one moment of the inputs and one of outputs.

With `R^T R = G` this is the one-sided problem of the weight `R W`. A fit of it becomes a fit of `W` by `R^-1`, if one
factor alone holds the outputs. So fits and curves need to know `Sigma` only.

Letters: G groups, T outputs per group, D inputs per group, N any other dimension.

Source: Martens, Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", 2015, arXiv
1503.05671 (the Kronecker factors of the Fisher information).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .diagonal import Diagonal
from .metric import Metric
from .symmetric import cholesky
from .two_uses import LookedUp


@dataclass(frozen=True, kw_only=True)
class TwoSided:
    """Sigma of the inputs, and the root of G of the outputs, of each group.

    Attributes:
        inputs: Sigma of each group.
        root_GTT: upper triangular `R` with `R^T R = G`; None if G is the identity.
        uses: for a tied embedding, which has no single root, G of the products and G of the lookups; else None.

    Example:
        >>> from rankwise.linalg.metric import Identity
        >>> metric = TwoSided.of([Identity(2)], torch.diag(torch.tensor([1.0, 3.0]))[None])
        >>> round(metric.energy(torch.ones(2, 2)) / metric.energy(torch.tensor([[1.0, 1.0], [0.0, 0.0]])), 6)
        4.0
    """

    inputs: Sequence[Metric]
    root_GTT: Tensor | None = None
    uses: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, inputs: Sequence[Metric], outputs_GTT: Tensor, damping: float = 0.0) -> TwoSided:
        """The metric of a moment of the outputs, scaled to a mean diagonal of 1.

        Args:
            inputs: Sigma of each group.
            outputs_GTT: G of each group, symmetric positive semidefinite. If all are zero, all outputs count the same.
            damping: of G, relative to the mean diagonal over all groups.
        """
        outputs_GTT = outputs_GTT.double()
        eye_TT = torch.eye(outputs_GTT.shape[1], dtype=torch.float64, device=outputs_GTT.device)
        mean = float(outputs_GTT.diagonal(dim1=1, dim2=2).mean())
        if mean <= 0:
            return cls(inputs=inputs, root_GTT=eye_TT.expand_as(outputs_GTT))
        roots = [cholesky(moment_TT / mean + damping * eye_TT).mT for moment_TT in outputs_GTT]
        return cls(inputs=inputs, root_GTT=torch.stack(roots))

    def forth(self, weight: Tensor) -> Tensor:
        """`R W` for a weight with outputs first."""
        if self.root_GTT is None:
            return weight
        return (self.root_GTT @ self._rows(weight)).reshape(weight.shape)

    def inputs_of(self, weight: Tensor) -> Sequence[Metric]:
        """The metrics of the inputs; for a tied embedding each use is weighed by how much its outputs matter."""
        if self.uses is None:
            return self.inputs
        products, lookups = self.energies(weight)
        rows = self.inputs[1]
        assert isinstance(rows, Diagonal)
        total = products + lookups
        return [self.inputs[0], LookedUp(rows, lookups / total if total else 0.5)]

    def energies(self, weight: Tensor) -> tuple[float, float]:
        """`trace(G W Sigma W^T)` of the products and of the lookups of a tied embedding, T x D."""
        assert self.uses is not None
        W_TD, (outputs_TT, rows_DD) = weight.double().flatten(1), self.uses
        products = float((outputs_TT * self.inputs[0].inner(W_TD)).sum())
        return products, float((self.inputs[1].times(W_TD.mT) * (rows_DD @ W_TD.mT)).sum())

    def back(self, weight: Tensor) -> Tensor:
        """`R^-1 W` for a weight with outputs first: the inverse of `forth`."""
        if self.root_GTT is None:
            return weight
        return torch.linalg.solve_triangular(self.root_GTT, self._rows(weight), upper=True).reshape(weight.shape)

    def energy(self, weight: Tensor) -> float:
        """`sum over the groups of trace(G W Sigma W^T)`, with G scaled as the root is."""
        rows_GTD = self.forth(weight.double()).reshape(len(self.inputs), -1, self.inputs[0].dim)
        return sum(metric.energy(W_TD) for W_TD, metric in zip(rows_GTD, self.inputs, strict=True))

    def _rows(self, weight: Tensor) -> Tensor:
        assert self.root_GTT is not None
        return weight.double().reshape(*self.root_GTT.shape[:2], -1)
