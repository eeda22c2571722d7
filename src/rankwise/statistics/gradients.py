"""The second moment of the loss's gradient at a site's output: how much an error of each output costs.

An error `e = (W - V) x` at every output position changes the loss of a sample by about `sum over positions of g^T e`,
with `g` the gradient there. If gradients and inputs are independent, and those of different positions too, its mean
square is `trace(G (W - V) Sigma (W - V)^T)`, `G = E sum over positions of g g^T`. Where `E g g^T` is the Fisher
information of the network's own answers, that is twice the Kullback-Leibler divergence between its answers and those of
the factorised network, to second order.

Letters: G groups, N rows, T outputs and D inputs per group, K classes.

Sources: Martens, Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", 2015, arXiv
1503.05671; Grosse, Martens, "A Kronecker-factored Approximate Fisher Matrix for Convolution Layers", 2016, arXiv
1602.01407 (convolutions); Martens, Sutskever, Swersky, "Estimating the Hessian by Back-propagating Curvature", 2012,
arXiv 1206.6464 (random signs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..linalg.metric import Metric
from ..linalg.two_sided import TwoSided
from ..running.calling import DataError
from ..running.outputs import Outputs, leaves_of
from .accumulator import add_gram, mirror
from .moments import DAMPING, shrinkage
from .rows import output_rows

if TYPE_CHECKING:
    from ..network.sites import Site
    from .moments import Moments

Loss = Callable[[Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Moment of the gradients at one site's output.

    Attributes:
        samples: that were seen.
        second_GTT: `sum over positions of g g^T`, the mean over samples, per group; float64.
        lookups_DD: the same at the rows that a tied embedding looks up; `second_GTT` is of its head then.
    """

    samples: int
    second_GTT: Tensor
    lookups_DD: Tensor | None = None

    def metric(self, inputs: Sequence[Metric], shrink: float = 0.0) -> TwoSided:
        """The metric of both sides: `(1 - s) G + s trace(G) / T I`, up to scale.

        Gradients at the positions of one sample go together, so that the number of samples says how far to trust `G`.

        Args:
            inputs: of each group.
            shrink: `s`, share of the weight metric, beside what the number of samples asks for; below 1.
        """
        if (
            self.lookups_DD is not None
        ):  # how far to trust two sums over all of a moment is no question of its directions
            return TwoSided(inputs=inputs, uses=(self.second_GTT[0], self.lookups_DD))
        trace, squares = float(self.second_GTT.diagonal(dim1=1, dim2=2).sum()), float(self.second_GTT.square().sum())
        share = shrinkage(trace, squares, self.samples, self.second_GTT.shape[0] * self.second_GTT.shape[1])
        added = max(DAMPING, share / (1 - share))
        return TwoSided.of(inputs, self.second_GTT, (added + shrink) / (1 - shrink))

    def merge(self, other: Gradients) -> Gradients:
        """The moment of both sets of samples together."""
        samples = self.samples + other.samples
        share = other.samples / samples
        lookups_DD = None
        if self.lookups_DD is not None and other.lookups_DD is not None:
            lookups_DD = torch.lerp(self.lookups_DD, other.lookups_DD, share)
        second_GTT = torch.lerp(self.second_GTT, other.second_GTT, share)
        return Gradients(samples=samples, second_GTT=second_GTT, lookups_DD=lookups_DD)


def fisher_energy(weight: Tensor, moments: Moments) -> float:
    """`1/2 trace(G W Sigma W^T)`: to second order the loss, in nats per sample, of a site that only gave its mean.

    The relative error of a fit in the metric "fisher" times this energy is the loss that it is predicted to cost.

    Args:
        weight: O x I/G [x kernel].
        moments: of the site, with gradients.
    """
    assert moments.gradients is not None
    if moments.gradients.lookups_DD is not None:
        return 0.5 * sum(moments.gradients.metric(moments.metrics(damping=0)).energies(weight))
    rows_GTD = weight.double().reshape(len(moments.mean_GD), -1, moments.dim)
    parts = zip(moments.gradients.second_GTT, rows_GTD, moments.metrics(damping=0), strict=True)
    return 0.5 * sum(float((G_TT * metric.inner(W_TD)).sum()) for G_TT, W_TD, metric in parts)


OWN = "give a loss of your own with loss="


class FisherProbe:
    """A function of the scores z whose gradients have the Fisher information of the answers as second moment.

    `sum_k u_k sqrt(p_k) (z_k - p^T z)` over the samples of a batch, with random signs `u` and the probabilities `p`
    held fixed: its gradient is `(I - p 1^T) diag(sqrt p) u`, whose second moment is `diag(p) - p p^T`. The gradient of
    the cross entropy with labels drawn from `p` has the same one, but where a network is sure of its answers, few of
    the drawn labels differ from the sure one, and those few make all of the estimate.

    Of outputs that are no scores (values, embeddings) it is `sum_k u_k z_k / sqrt(E z^2)` of each of them: the Fisher
    information of a normal distribution about z, in which errors count relative to the size of the outputs.

    Args:
        seed: of the signs.
        outputs: what the network's outputs are, where that is decided; else by the outputs alone.

    Example:
        >>> z = torch.zeros(1, 2, requires_grad=True)
        >>> FisherProbe(seed=0)(z).backward()
        >>> torch.outer(z.grad[0], z.grad[0])
        tensor([[ 0.5000, -0.5000],
                [-0.5000,  0.5000]])
    """

    def __init__(self, seed: int, outputs: Outputs | None = None) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.outputs = outputs

    def __call__(self, output: Any) -> Tensor:
        try:
            outputs = self.outputs or Outputs.seen(output)
            if outputs.has_scores:
                return self._of_classes(outputs.logits(output).flatten(0, -2).float())
        except ValueError as error:
            raise DataError(f"gradients need scores of classes or values: {error}") from None
        floating = [leaf.float() for _, leaf in leaves_of(output) if leaf.is_floating_point() and leaf.requires_grad]
        if not floating:
            raise DataError(
                f"gradients need scores or values that depend on the layers, the {outputs} have none; {OWN}"
            )
        return torch.stack([self._of_values(leaf) for leaf in floating]).sum()

    def _of_classes(self, z_NK: Tensor) -> Tensor:
        p_NK = z_NK.detach().softmax(-1)
        return (self._signs(p_NK) * p_NK.sqrt() * (z_NK - (p_NK * z_NK).sum(-1, keepdim=True))).sum()

    def _of_values(self, z: Tensor) -> Tensor:
        size = z.detach().square().mean().sqrt().clamp_min(torch.finfo(z.dtype).tiny)
        return (self._signs(z) * z).sum() / size

    def _signs(self, like: Tensor) -> Tensor:
        return torch.randint(2, like.shape, generator=self.generator).to(like) * 2 - 1


class GradientCollector:
    """Takes the gradients at the outputs of sites, one backward pass per batch.

    Every watched output is handed on as a copy, so that nothing that follows can overwrite it, and the first ones start
    the graph: the network's parameters take no part.

    Args:
        loss: of what the model returns, summed over the samples of a batch.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.taken: list[tuple[Site, nn.Module, Tensor]] = []
        self.sums: dict[str, Tensor] = {}
        self.lookups: dict[str, Tensor] = {}  # of tied embeddings, whose head has the other sum
        self.samples = 0

    def watcher(self, site: Site) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        """A forward hook for a layer of the site."""

        def watch(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
            taken = output if output.requires_grad else output.detach().requires_grad_()
            self.taken.append((site, layer, taken))
            return taken.clone()

        return watch

    def update(self, output: Any, samples: int, batch: int) -> None:
        """Add the gradients of one batch, whose forward pass gave `output`.

        Raises:
            ValueError: if the loss is no number, does not depend on a site, or has gradients that are not finite.
        """
        loss = self.loss(output)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"batch {batch}: the loss must be one number that depends on the network's layers; sum it over the "
                "samples, and do not run the network under no_grad"
            )
        gradients = torch.autograd.grad(loss.sum(), [taken for _, _, taken in self.taken], allow_unused=True)
        for (site, layer, _), gradient in zip(self.taken, gradients, strict=True):
            if gradient is None:
                raise ValueError(
                    f"site {site.name!r}: the loss does not depend on its output; leave it out (only=, on the command "
                    "line --ignore), or give a loss that does"
                )
            if not gradient.numel():  # an empty call adds nothing
                continue
            rows_GNT = output_rows(layer, gradient, None)
            sums = self.lookups if site.is_tied and isinstance(layer, nn.Embedding) else self.sums
            if site.name not in sums:
                T = rows_GNT.shape[2]
                zeros_GTT = torch.zeros(len(rows_GNT), T, T, dtype=torch.float64, device=rows_GNT.device)
                sums[site.name] = zeros_GTT
            add_gram(sums[site.name], rows_GNT)
            if not torch.isfinite(sums[site.name].diagonal(dim1=1, dim2=2)).all():
                raise ValueError(f"site {site.name!r}, batch {batch}: the gradient at its output holds NaN or infinity")
        self.taken = []
        self.samples += samples

    def gradients(self) -> dict[str, Gradients]:
        """The moments so far, by site name."""
        result = {}
        for name, sum_GTT in self.sums.items():
            lookups_1DD = self._mean(self.lookups[name]) if name in self.lookups else None
            result[name] = Gradients(
                samples=self.samples,
                second_GTT=self._mean(sum_GTT),
                lookups_DD=None if lookups_1DD is None else lookups_1DD[0],
            )
        return result

    def _mean(self, sum_GTT: Tensor) -> Tensor:
        second_GTT = sum_GTT / self.samples
        mirror(second_GTT)
        return second_GTT
