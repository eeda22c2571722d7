"""Importance of each neuron of a layer by the loss: to second order, and exactly where the loss changes most.

Letters: S samples, N neurons of a side, P pairs of a sample and a neuron.

Source: Bekas, Kokiopoulou, Saad, "An estimator for the diagonal of a matrix", 2007, Applied Numerical Mathematics 57
(the diagonal by random signs); its use here is our own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..formats.slr import Importance
from ..formats.weights import write
from ..layers.kinds import spatial_dims
from ..network.site import Site
from ..running.exclusive import exclusive, own_thread
from ..running.pristine import pristine
from .labelled import Labelled, Loss, mean
from .truncated import truncated

# Rank correlation with `by_cost` for the outputs of LeNet-300-100, without passes: 0.84 with 4 draws, 0.92 with 16,
# 0.93 with 64.
DRAWS = 16
# For the outputs of LeNet-5: 0.73 without passes at any number of draws, 0.83 with 1 pass, 0.95 with 4, 0.97 with 8.
PASSES = 4


@exclusive
def by_curvature(
    model: nn.Module,
    site: Site,
    data: Labelled,
    ranks: tuple[int, int],
    loss: Loss = F.cross_entropy,
    *,
    draws: int = DRAWS,
    passes: int = PASSES,
    seed: int = 0,
) -> Importance:
    """The second-order change of the loss that `by_cost` measures: `p_c = |mean_s (-<G_s, N_c> + <N_c, H_s N_c> / 2)|`.

    `N` are the components beyond the first rank, `G_s` and `H_s` gradient and Hessian of sample s at `W_k`. A variable
    per sample and neuron says how far the neuron is cut off; the second derivatives in these variables are the mean of
    `v (H v)` over vectors v of random signs. Few pairs of a sample and a neuron make up most of a change, and for these
    two orders are not enough: the largest are replaced by the exact change of the sample's loss.

    Args:
        model: the dense network; a copy is changed.
        site: the layer; the first dimension of its input must be the samples.
        data: inputs and targets; see `self_labelled`.
        ranks: the rank of all neurons, and the further rank.
        loss: of outputs and targets, mean over samples.
        draws: vectors of signs per batch; each costs a gradient of gradients.
        passes: forward passes for exact changes, each of as many pairs as there are samples; with one pass per neuron
            the result is that of `by_cost`.
        seed: of the signs.

    Raises:
        ValueError: naming the site, if the ranks are not legal or its input does not have one row per sample; if
            `draws` or `passes` is out of range, or there are no samples.
    """
    if draws < 1 or passes < 0:
        raise ValueError(f"draws {draws} and passes {passes} must be at least 1 and 0")
    trial = truncated(model, site, ranks)
    beyond = copy.deepcopy(trial.layer)
    with torch.no_grad():
        write(beyond, trial.further_GTCQ)
        if isinstance(bias := getattr(beyond, "bias", None), Tensor):
            bias.zero_()
    sides = [_Side(site.name, trial.network, trial.layer, beyond, loss, reads) for reads in (True, False)]
    shapes = (trial.first_GTCQ.shape[:3:2], trial.first_GTCQ.shape[:2])
    totals = [trial.first_GTCQ.new_zeros(shape) for shape in shapes]
    generator, count = torch.Generator().manual_seed(seed), 0
    with pristine(trial.network):  # without fast paths that would bypass the layer
        for x, y in data:
            for side, total in zip(sides, totals, strict=True):
                change_SN = side.second_order(x, y, total.numel(), draws, generator)
                if passes:
                    side.correct(change_SN, x, y, passes)
                total += change_SN.double().sum(0).reshape(total.shape)
            count += len(x)
    inputs_GC, outputs_GT = (mean(total, count).abs() for total in totals)
    return Importance(inputs_GC, outputs_GT)


@dataclass(frozen=True)
class _Side:
    """The inputs (`reads`) or outputs of a layer, and how the loss of single samples changes when they are cut off.

    The network holds the truncated SVD; `beyond` is a layer with only its components beyond the first rank.
    """

    site: str
    network: nn.Module
    layer: nn.Module
    beyond: nn.Module
    loss: Loss
    reads: bool

    def second_order(self, x: Tensor, y: Tensor, neurons: int, draws: int, generator: torch.Generator) -> Tensor:
        """Change of each sample's loss when each neuron is cut off, S x N."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        cut_SN = torch.zeros(len(x), neurons, dtype=weight.dtype, device=weight.device, requires_grad=True)
        # Fused attention has no second derivatives.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), self._cut_off(cut_SN):
            total = len(x) * self.loss(self.network(x), y)
            (slope_SN,) = torch.autograd.grad(total, cut_SN, create_graph=True)
            slope_SN = slope_SN + 0 * cut_SN  # so that a constant slope has derivatives, 0
        change_SN = slope_SN.detach().clone()
        for _ in range(draws):
            signs_SN = (2 * torch.randint(0, 2, cut_SN.shape, generator=generator) - 1).to(cut_SN)
            (curved_SN,) = torch.autograd.grad(slope_SN, cut_SN, signs_SN, retain_graph=True)
            change_SN += signs_SN * curved_SN / (2 * draws)
        return change_SN

    def correct(self, change_SN: Tensor, x: Tensor, y: Tensor, passes: int) -> None:
        """Replace the largest changes by exact ones."""
        samples, neurons = change_SN.shape
        base_S = self._losses(x, y)
        chosen_P = change_SN.abs().flatten().topk(min(passes, neurons) * samples).indices
        for pairs_P in chosen_P.split(samples):
            sample_P, neuron_P = (pairs_P // neurons).to(x.device), pairs_P % neurons
            with self._cut_off(F.one_hot(neuron_P, neurons).to(change_SN)):
                cut_P = self._losses(x[sample_P], y[sample_P.to(y.device)])
            change_SN.view(-1)[pairs_P] = (cut_P - base_S[sample_P.to(base_S.device)]).to(change_SN)

    def _losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Losses of single samples."""
        outputs = self.network(x)
        return torch.stack([self.loss(*pair) for pair in zip(outputs.split(1), y.split(1), strict=True)])

    @contextmanager
    def _cut_off(self, cut_SN: Tensor) -> Iterator[None]:
        """Inside, the layer makes `W_k x - N (cut x)`, or `W_k x - cut (N x)` if outputs are cut off."""
        spatial = spatial_dims(self.layer)

        def reduced(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = given[0]
            if len(x) != len(cut_SN):
                raise ValueError(
                    f"site {self.site!r}: its input has {len(x)} rows for {len(cut_SN)} samples, so neurons cannot be "
                    f"cut off sample by sample; use by_gradient (cost)"
                )
            between = (1,) * (x.dim() - 2)
            cut = cut_SN.reshape(len(x), -1, *between) if spatial else cut_SN.reshape(len(x), *between, -1)
            return output - (self.beyond(cut * x) if self.reads else cut * self.beyond(x))

        handle = self.layer.register_forward_hook(own_thread(reduced))
        try:
            yield
        finally:
            handle.remove()
