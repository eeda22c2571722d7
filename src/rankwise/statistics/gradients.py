"""The second moment of the loss's gradient at a site's output: how much an error in each output costs.

An error `e = (W - V) x` at every output position changes the loss of a sample by about `sum over positions of g^T e`,
with `g` the gradient there. If gradients and inputs, and different positions, are independent, its mean square is
`trace(G (W - V) Sigma (W - V)^T)`, `G = E sum over positions of g g^T`. If `E g g^T` is the Fisher information of the
network's own answers, that is, to second order, twice the Kullback-Leibler divergence between its answers and those of
the factorised network.

Letters: G groups, N rows, T outputs and D inputs per group, K classes.

Sources: Martens, Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", 2015, arXiv
1503.05671; Grosse, Martens, "A Kronecker-factored Approximate Fisher Matrix for Convolution Layers", 2016, arXiv
1602.01407 (convolutions); Martens, Sutskever, Swersky, "Estimating the Hessian by Back-propagating Curvature", 2012,
arXiv 1206.6464 (random signs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..network.site import Site
from ..running.calling import DataError
from ..running.outputs import Outputs, leaves_of
from .accumulator import add_gram, mirror
from .moments import Moments
from .output_gradients import Gradients
from .rows import output_rows
from .weight_gradients import WeightGradients

Loss = Callable[[Any], Tensor]


def stated_loss(output: Any) -> Tensor:
    """The loss that a network of transformers computes where a batch has labels, summed over the batch's samples."""
    loss: Tensor = output.loss * len(output.logits)
    return loss


class WithLabels:
    """Batches of tokens with the tokens themselves as labels, for `stated_loss`; padding gets the label -100.

    Args:
        batches: mappings with `input_ids`.

    Raises:
        ValueError: while they are iterated, for a batch without tokens.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            tokens = batch.get("input_ids") if isinstance(batch, Mapping) else None
            if tokens is None:
                raise ValueError("a batch has no input_ids; only language models have the loss of the next token")
            mask = batch.get("attention_mask")
            yield {**batch, "labels": tokens if mask is None else tokens.masked_fill(mask == 0, -100)}


def fisher_energy(weight: Tensor, moments: Moments) -> float:
    """`1/2 trace(G W Sigma W^T)`: the loss in nats per sample, to second order, if the site gave only its mean.

    The relative error of a fit in the metric "fisher" times this energy is its predicted loss.

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
    held fixed: its gradient is `(I - p 1^T) diag(sqrt p) u`, with second moment `diag(p) - p p^T`. The cross entropy
    with labels drawn from `p` has the same moment, but a worse estimate: where a network is sure, few drawn labels
    differ from its answer, and those few dominate.

    For other outputs (values, embeddings) it is `sum_k u_k z_k / sqrt(E z^2)` of each: the Fisher information of a
    normal distribution about z, where errors count relative to the size of the outputs.

    Args:
        seed: of the signs.
        outputs: what the network's outputs are; by default decided from each batch's outputs.

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
    """Collects the gradients at the outputs of sites, in one backward pass per batch.

    Args:
        loss: function of the network's output, summed over the samples of a batch.
        weights: whether also what follows from the gradients of the weights, of sites that are one layer.
        own: whether the loss is the user's, whose gradients have a mean that says something.
    """

    def __init__(self, loss: Loss, *, weights: bool = False, own: bool = False) -> None:
        self.loss = loss
        self.weights = WeightGradients(own) if weights else None
        self.taken: list[tuple[Site, nn.Module, int | None, Tensor, Tensor | None]] = []
        self.sums: dict[str, dict[int, Tensor]] = {}  # site -> part of its outputs -> sum
        self.lookups: dict[str, Tensor] = {}  # tied embedding -> sum at looked-up rows; its head's is in `sums`
        self.samples = 0

    def watcher(self, site: Site, part: int | None) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        """A forward hook for the layer that gives this part of the site's outputs; None for rows of a table."""

        def watch(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
            # Parameters need no gradient, so the first sites start the graph. The network goes on with a copy, and
            # cannot overwrite what the gradient is taken at.
            taken = output if output.requires_grad else output.detach().requires_grad_()
            read = args[0] if args else None
            self.taken.append((site, layer, part, taken, read))
            return taken.clone()

        return watch

    def update(self, output: Any, samples: int, batch: int) -> None:
        """Add the gradients of one batch, whose forward pass gave `output`.

        Raises:
            ValueError: if the loss is not a number, does not depend on a site, or has gradients that are not finite.
        """
        loss = self.loss(output)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"batch {batch}: the loss must be one number that depends on the network's layers; sum it over the "
                "samples, and do not run the network under no_grad"
            )
        gradients = torch.autograd.grad(loss.sum(), [taken for *_, taken, _ in self.taken], allow_unused=True)
        for (site, layer, part, taken, read), gradient in zip(self.taken, gradients, strict=True):
            if gradient is None:
                raise ValueError(
                    f"site {site.name!r}: the loss does not depend on its output; leave it out (only=, on the command "
                    "line --ignore), or give a loss that does"
                )
            if not gradient.numel():  # an empty call adds nothing
                continue
            rows_GNT = output_rows(layer, gradient, None)
            G, _, T = rows_GNT.shape
            zeros_GTT = torch.zeros(G, T, T, dtype=torch.float64, device=rows_GNT.device)
            if part is None:
                sum_GTT = self.lookups.setdefault(site.name, zeros_GTT)
            else:
                sum_GTT = self.sums.setdefault(site.name, {}).setdefault(part, zeros_GTT)
            add_gram(sum_GTT, rows_GNT)
            if self.weights is not None and part is not None and len(site.slots) < 2 and not site.looks_up:
                if read is None:
                    raise ValueError(f"site {site.name!r} gets its input by name; leave it out (only=)")
                self.weights.add(site, layer, read, taken, rows_GNT, samples)
            if not torch.isfinite(sum_GTT.diagonal(dim1=1, dim2=2)).all():
                raise ValueError(f"site {site.name!r}, batch {batch}: the gradient at its output holds NaN or infinity")
        self.taken = []
        self.samples += samples

    def gradients(self) -> dict[str, Gradients]:
        """The moments so far, by site name."""
        result = {}
        for name, parts in self.sums.items():
            # Joint slots: the moment between the outputs of two layers is taken for zero.
            means = [self._mean(parts[part]) for part in sorted(parts)]
            result[name] = Gradients(
                samples=self.samples,
                second_GTT=means[0] if len(means) == 1 else torch.block_diag(*[mean[0] for mean in means])[None],
                lookups_DD=self._mean(self.lookups[name])[0] if name in self.lookups else None,
                **({} if self.weights is None else self.weights.means(name, self.samples)),
            )
        return result

    def _mean(self, sum_GTT: Tensor) -> Tensor:
        second_GTT = sum_GTT / self.samples
        mirror(second_GTT)
        return second_GTT
