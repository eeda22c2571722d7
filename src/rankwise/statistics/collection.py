"""One pass over calibration data: the moments of every site's input.

Letters: see `rows`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..network.find import find
from ..network.forward import Joined
from ..network.kinds import Reads, kind_of
from ..network.site import Site
from ..running.batches import Batches
from ..running.calling import DataError, call, samples_in
from ..running.example import taking_example, with_example
from ..running.exclusive import own_thread
from ..running.finite import Blame
from ..running.guards import unwrap
from ..running.outputs import Outputs
from ..running.padding import Mask, Padding
from ..running.pristine import pristine
from ..running.verbs import verb
from .accumulator import BLOCK_ROWS, Accumulator
from .counts import Lookups
from .gradients import FisherProbe, GradientCollector, Loss
from .moments import LARGEST_DENSE, SAMPLED_ROWS, Moments
from .rows import draw, positions_per_sample, rows_expected
from .shared import Products, Rows
from .store import Statistics

logger = logging.getLogger("rankwise")

ANNOUNCED_LOUDLY = 4 * 2**30


@verb
@taking_example
def collect(
    model: nn.Module,
    data: Iterable[Any] | None = None,
    *,
    forward_loop: Callable[[nn.Module], object] | None = None,
    example: Any = None,
    only: Collection[str] | None = None,
    gradients: bool | str = False,
    loss: Loss | None = None,
    positions: int | str = "auto",
    seed: int = 0,
    mask: Mask | None = None,
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
    joint: Joined = False,
) -> Statistics:
    """Collect mean and second moment of the (unfolded) input of every site.

    `mu = E[x], Sigma = E[x x^T]` over samples and output positions, per convolution group, where x is the layer's input
    after padding, at its stride and dilation.

    With `gradients` also the second moment of the loss's gradient at the output of every site, `G = E sum_p g_p g_p^T`
    over its positions p, in one backward pass per batch: for the metric and the rule "fisher".

    Args:
        model: the dense network; left exactly as it was.
        data: any re-iterable of batches (tensor, tuple or mapping), without labels.
        forward_loop: instead of `data`, a function that runs the model; needs `example`.
        example: the batch that MACs are counted for, as for `find`; by default the first sample of the data, or the
            whole first batch if one sample does not represent it, which is logged.
        only: names of the sites to collect; all by default.
        gradients: collect gradients at the outputs, too; "weights" for what follows from those of the weights as well,
            which costs about another backward pass. Sites with more than 8,192 outputs get none, which is logged.
        loss: function of the network's output, summed over the samples of a batch; implies `gradients`. The default
            needs no labels: a function of the scores whose gradients have the Fisher information of the network's own
            answers as second moment (`FisherProbe`).
        positions: output positions of each sample to use: "auto" (40 rows per input dimension over all samples, at
            most four times the layer's own multiplications, at least 16 per sample), "all", or a number.
        seed: of the positions and of the default loss.
        mask: the padding to leave out: the name of an argument of the network, or a function of a batch; either gives
            [samples, positions], 0 for padding. By default `attention_mask` of a mapping.
        progress: wraps the batches, for a progress bar: `progress(batches, description)`.
        joint: whether layers that belong together are one site, or which kinds, as for `find`.

    Returns:
        Moments by site name. Sites that stay dense have none.

    Raises:
        ValueError: if the data is empty or not finite, the model rejects a batch, or neither or both of `data` and
            `forward_loop` are given; for gradients with a `forward_loop`, or with a loss that is not a single number or
            does not depend on a site.

    Example:
        >>> import torch
        >>> stats = collect(torch.nn.Sequential(torch.nn.Linear(4, 3)), [torch.randn(8, 4)])
        >>> stats["0"].count
        8
    """
    model = unwrap(model)
    if isinstance(gradients, str) and gradients != "weights":
        raise ValueError(f'gradients is {gradients!r}; it is True, False or "weights"')
    if (data is None) == (forward_loop is None):
        raise ValueError("collect needs either data (batches) or forward_loop (a function of the model), one of them")
    if forward_loop is not None and (gradients or loss):
        raise ValueError("gradients need the batches themselves: pass data instead of forward_loop")
    batches = None if data is None else Batches.of(data)
    if batches is not None:
        example, batches = with_example(model, batches, example)
    elif example is None:
        raise ValueError("collect with a forward_loop needs example=, for which MACs are counted")
    sites = find(model, example, joint=joint)
    chosen = [site for site in sites.values() if not site.dense_because and (only is None or site.name in only)]
    samples = None if batches is None else batches.samples
    takers = _gradient_sites(chosen) if gradients or loss else []
    needed, fitting = memory_needed(chosen, samples, positions)
    needed += sum(8 * site.groups * (site.out_features // site.groups) ** 2 for site in takers)
    logger.log(
        logging.WARNING if needed + fitting > ANNOUNCED_LOUDLY else logging.INFO,
        "statistics of %d sites take up to %.2f GB of memory, fitting the largest of them %.2f GB more",
        len(chosen),
        needed / 1e9,
        fitting / 1e9,
    )
    collector, padding = _Collector(chosen, samples, positions, seed), Padding(mask)
    probed = Outputs.of(model, batches.first()) if takers and loss is None and batches is not None else None
    backward = GradientCollector(loss or FisherProbe(seed, probed), weights=gradients == "weights", own=bool(loss))
    with Blame(model) as blame, pristine(model), ExitStack() as hooks:
        for site in chosen:
            for layer, reads in kind_of(site).reads(model, site).items():
                # Before all other hooks: it sees the layer's own output, and its input after the user's pre-hooks.
                hook = own_thread(collector.observer(site, reads))
                hooks.callback(layer.register_forward_hook(hook, with_kwargs=True, prepend=True).remove)
            for layer, part in kind_of(site).outputs(model, site).items() if site in takers else ():
                watcher = own_thread(backward.watcher(site, part))
                hooks.callback(layer.register_forward_hook(watcher, prepend=True).remove)
        if takers:
            model.requires_grad_(False)  # the graph starts at the sites' outputs
        if forward_loop is not None:
            forward_loop(model)
        elif batches is not None:
            for index, batch in enumerate(batches if progress is None else progress(batches, "statistics")):
                collector.batch, collector.real, blame.batch = index, padding.real(batch), (index, batch)
                with torch.set_grad_enabled(bool(takers)):
                    output = call(model, batch, index=index)
                    blame.look(output)
                    if takers:
                        backward.update(output, samples_in(batch, (batches.axis or 0) if batches else 0), index)
        missing = [site.name for site in chosen if not collector.reached(site.name)]
        if missing and (only is not None or len(missing) == len(chosen)):
            raise ValueError(f"the calibration data never reached site {missing[0]!r} ({len(missing)} sites in all)")
        if missing:
            logger.warning("the calibration data never reach %s: left dense", ", ".join(map(repr, missing)))
            sites = sites.left_dense(dict.fromkeys(missing, "the calibration data never reach it"))
            chosen = [site for site in chosen if site.name not in missing]
        taken = backward.gradients()
        moments = {site.name: replace(collector.moments(site.name), gradients=taken.get(site.name)) for site in chosen}
    return Statistics(moments, sites=sites, samples=samples or 0, seed=seed)


def _gradient_sites(sites: Collection[Site]) -> list[Site]:
    """The sites with few enough outputs for a moment; the others are logged."""
    few = [site for site in sites if site.out_features // site.groups <= LARGEST_DENSE]
    for site in sites:
        if site not in few:
            logger.warning(
                "site %r: no gradients are collected, a moment of its %d outputs would be too large (at most %d)",
                site.name,
                site.out_features,
                LARGEST_DENSE,
            )
    return few


def memory_needed(sites: Collection[Site], samples: int | None, positions: int | str) -> tuple[int, int]:
    """The most bytes that the moments of the sites take, and the most that a fit of one of them takes on top."""
    held = fitting = 0
    for site in sites:
        if not site.multiplies:  # counts, and copies of the weight in float64
            held += 8 * site.in_features
            fitting = max(fitting, 8 * 4 * math.prod(site.weight_shape))
            continue
        if site.looks_up:  # counts beside the moments of its head
            held += 8 * site.out_features
        D, T, rows = site.in_features, site.out_features // site.groups, rows_expected(site, samples, positions)
        kept = min(rows, SAMPLED_ROWS if D > LARGEST_DENSE else D)
        if D > LARGEST_DENSE:  # pending rows, and two copies of the kept ones while they are thinned
            held += site.groups * (min(rows, 2 * SAMPLED_ROWS) + 2 * kept) * D * 4
        elif rows <= D:
            held += site.groups * rows * D * 4
        else:
            # The float64 sum and a product to add; pending rows, twice when they are concatenated.
            held += site.groups * D * (16 * D + 8 * max(D, BLOCK_ROWS))
        # In float64: the metric and the moments it is made from, the weight, its projection and both outer products;
        # for a tied embedding, which has many rows, only matrices of the weight's size.
        metric = kept * D if D > LARGEST_DENSE or rows <= D else D * D
        work = 8 * T * D if site.looks_up else 4 * site.groups * T * D + 4 * min(T, D) ** 2
        fitting = max(fitting, 8 * (2 * site.groups * metric + work))
    return held, fitting


def _picked(x: Tensor, real: Tensor) -> Tensor:
    """What a mask on the host picks of a tensor on a device, which then need not read the mask."""
    return x.reshape(real.numel(), -1)[real.flatten().nonzero().flatten().to(x.device)]


class _Collector:
    """Passes the inputs that a site's hook sees to its accumulator."""

    def __init__(self, sites: list[Site], samples: int | None, positions: int | str, seed: int) -> None:
        self.rows, products = Rows(), Products()
        self.accumulators = {
            site.name: Accumulator(taps=site.taps, seed=seed, products=products, parts=True)
            for site in sites
            if site.multiplies
        }
        self.lookups = {
            site.name: Lookups(site.out_features if site.multiplies else site.in_features)
            for site in sites
            if site.looks_up
        }
        self.wanted = {site.name: positions_per_sample(site, samples, positions) for site in sites}
        self.seed = seed
        self.batch = 0
        self.real: Callable[[str, Tensor], Tensor | None] = lambda site, x: None  # rows of the batch, see `Padding`
        self.calls: dict[tuple[str, int], int] = {}

    def observer(self, site: Site, reads: Reads) -> Callable[..., None]:
        """A forward hook for a layer that reads the site's inputs."""

        @torch.no_grad()
        def observe(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            real = self.real(site.name, x)
            if reads is Reads.INDICES:  # counting all of them is cheap
                self.lookups[site.name].update(x if real is None else _picked(x, real))
                return
            if not x.numel() or not y.numel():  # an empty call adds nothing
                return
            number = self.calls[site.name, self.batch] = self.calls.get((site.name, self.batch), -1) + 1
            key = f"{site.name}:{self.batch}:{number}"
            drawn = draw(layer, x, y, self.wanted[site.name], key, self.seed, real)
            try:
                self.accumulators[site.name].update(self.rows.of(site.name, layer, x, drawn))
            except ValueError as error:
                raise DataError(f"site {site.name!r}, batch {self.batch}: {error}") from error
            self.accumulators[self.rows.first].shares |= self.rows.first != site.name

        return observe

    def reached(self, name: str) -> bool:
        """Whether every use of a site was seen."""
        uses = [kind[name] for kind in (self.accumulators, self.lookups) if name in kind]
        return all(use.count for use in uses)

    def moments(self, name: str) -> Moments:
        """The moments of a site, whose sums are dropped: two copies of all moments may not fit in memory."""
        if name not in self.accumulators:
            return self.lookups[name].moments()
        moments = self.accumulators.pop(name).moments()
        if name not in self.lookups:
            return moments
        seen_V = self.lookups[name].seen_V
        assert seen_V is not None
        return replace(moments, lookups_V=seen_V.double())
