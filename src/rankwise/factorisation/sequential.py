"""Sequential factorisation: every site is fitted to the dense outputs on the inputs that it will really get.

Sites are visited in execution order. At each one the moments of its inputs in the compressed network and their cross
moments with the dense outputs are collected, and the site is fitted in closed form (see `fitting`). Each network runs
over the data once where its graph can be traced; else both run from the start for every site.

Letters: G groups, N rows, D inputs and T outputs per group.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from ..formats import Format, get_format
from ..formats.weights import site_weight
from ..layers.kinds import spatial_dims
from ..network.counting import Calls
from ..network.kinds import kind_of
from ..network.site import Site
from ..network.sites import Sites
from ..plan import Plan, PlanRow
from ..running.batches import Batches
from ..running.calling import DataError, call
from ..running.finite import culprit
from ..running.padding import Padding
from ..statistics import Moments, Statistics
from ..statistics.accumulator import Accumulator
from ..statistics.collection import collect
from ..statistics.moments import merge
from ..statistics.rows import Drawn, draw, positions_per_sample, rows_expected
from ..statistics.sampling import Sampling
from ..surgery.rebuild import rebuild
from . import blocks, graph, hooks
from .fitting import LEAST_ROWS_PER_INPUT, choose_beta, fit_site
from .half import fill
from .one_shot import factorise_site, note_done, put_done
from .residual import Repair, corrected
from .spill import DEFAULT_CAP
from .watch import linked_sites

if TYPE_CHECKING:
    from ..plan import Done
    from ..work import Layer

logger = logging.getLogger("rankwise")

ENGINES = ("auto", "graph", "blocks", "hooks")
HELD_OUT = 4  # every fourth sample decides between regression targets


@dataclass(frozen=True, kw_only=True)
class Sequentially(Sampling):
    """Which rows sequential factorisation uses, and how it runs the networks.

    Attributes:
        engine: "graph" runs each network once; "blocks" runs it block by block, each block once for every site in it;
            "hooks" runs it from the start for every site; "auto" takes the first of them that is possible.
        spill_above: bytes of activations above which they go to memory-mapped files.

    Raises:
        ValueError: for an unknown engine.
    """

    engine: str = "auto"
    spill_above: int = DEFAULT_CAP

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"unknown engine {self.engine!r}; the engines are {', '.join(ENGINES)}")


def sequential(
    dense: nn.Module,
    compressed: nn.Module,
    plan: Plan,
    sites: Sites,
    batches: Batches,
    example: Any,
    how: Sequentially,
    *,
    gradients: Statistics | None = None,
    step: Callable[[str], None] = lambda site: None,
    formats: Mapping[str, Format] | None = None,
    done: Done[Layer] | None = None,
) -> None:
    """Factorise `compressed`, a copy of `dense`, in place.

    Args:
        dense, compressed: the networks, in eval mode, under no_grad.
        example: a batch like the data.
        gradients: of the dense network, for a plan in the metric "fisher".
        step: called with each site's name before it is fitted.
        done: layers that were fitted before; missing ones are added.

    Raises:
        ValueError: if the engine is "graph" and the network cannot be traced.
    """
    rows = {row.site: row for row in plan.factorised}
    places = {name: _place(site) for name, site in sites.items() if name in rows}
    shared = [name for name, place in places.items() if place is None]
    for name in rows:
        site_weight(dense, sites[name])  # raises for weights that are not finite, before anything runs
    own = partial(
        collect,
        dense,
        batches,
        example=example,
        positions=how.positions,
        seed=how.seed,
        mask=how.mask,
        joint=sites.joint,
    )
    samples = batches.samples
    at = {place: name for name, place in places.items() if place is not None}
    visitor = _Visitor(dense, compressed, rows, at, plan.metric, gradients, sites, samples, how, formats, own, done)
    visitor.fit_first(shared, step)
    if not at:
        return
    try:
        _visit(dense, compressed, batches, example, list(at), visitor, how, lambda place: step(at[place]))
    except DataError as error:
        if visitor.odd is None:
            raise
        batch = next(islice(batches, visitor.odd, None))
        raise DataError(f"{error}{culprit(dense, batch) or culprit(compressed, batch)}") from error


def _visit(
    dense: nn.Module,
    compressed: nn.Module,
    batches: Batches,
    example: Any,
    order: list[str],
    visitor: _Visitor,
    how: Sequentially,
    step: Callable[[str], None],
) -> None:
    """Run the two networks by the graph where it can be traced, else block by block, else by hooks."""
    linked = {name for name in linked_sites(dense, example, order) if not dense.get_submodule(name)._forward_hooks}
    padding = Padding(how.mask)
    reason = ""
    if how.engine in ("auto", "graph"):
        traced = graph.trace(dense, example, order, linked)
        if isinstance(traced, fx.Graph):
            try:
                graph.run(dense, compressed, traced, batches, order, linked, visitor, how.spill_above, padding, step)
                return
            except graph.OtherOptionsError as error:
                reason = str(error)
                visitor.start("")  # drop what the first site has seen
        else:
            reason = traced
        if how.engine == "graph":
            raise ValueError(f"the network cannot be traced ({reason}); use engine='blocks' or engine='hooks'")
    several = _called_again(dense, batches, order)
    visitor.fit_first([visitor.at[place] for place in several], step)
    order = [name for name in order if name not in several]
    linked = linked.difference(several)
    whole = hooks.Whole(dense, compressed, batches, padding)
    for names, stack in [(order, [])] if how.engine == "hooks" else blocks.stacks(dense, order):
        alone = names == order and how.engine != "hooks"
        if stack:
            refused = blocks.run(
                dense, compressed, whole, stack, names, linked, visitor, how.seed, how.spill_above, step
            )
            if refused is None:
                continue
            reason = "; ".join(filter(None, (reason, f"its blocks: {refused}")))
        if how.engine == "blocks" and (stack or alone):
            why = reason or "it is no stack of blocks"
            raise ValueError(f"the network does not run block by block ({why}); use engine='hooks'")
        if stack or alone:
            which = "every site" if alone else f"each of {', '.join(map(repr, names))}"
            logger.warning("the network cannot be traced (%s); %s runs it from the start", reason, which)
        hooks.run(dense, compressed, whole, names, linked, visitor, how.seed, step)


def _called_again(dense: nn.Module, batches: Batches, order: Sequence[str]) -> list[str]:
    """The sites that a batch calls several times though the example does not, such as once for each part of it."""
    with Calls(dense) as calls:
        call(dense, next(iter(batches)))
    return [name for name in order if calls.count[name] > 1]


def _place(site: Site) -> str | None:
    """Name of the layer at which a site is visited; None where it is fitted on its dense inputs, before all others.

    A chain that is called several times is put in place before its first call, when its later inputs are not known yet.
    The inputs of a table are indices, and rows that the network picks are not pairs.
    """
    return None if len(site.calls) > 1 or site.unpaired is not None else kind_of(site).place(site)


@dataclass
class _Visitor:
    """Collects the moments of one site after the other and puts the chains into the compressed network.

    A site is visited at its place, the layer that reads its inputs and gives its outputs. The layers of hidden units
    before it stay dense until then, so that the units that are kept are chosen among all of them.
    """

    dense: nn.Module
    compressed: nn.Module
    rows: dict[str, PlanRow]
    at: dict[str, str]  # place -> site
    metric: str
    gradients: Statistics | None
    sites: Sites
    samples: int
    how: Sampling
    formats: Mapping[str, Format] | None
    own: Callable[..., Statistics]  # collects moments of the dense network's inputs
    done: Done[Layer] | None
    changed: list[str] = field(default_factory=list)
    odd: int | None = None  # number of the batch that moments could not be made from

    def __post_init__(self) -> None:
        self.start("")

    def start(self, name: str) -> None:
        """Turn to another site; "" for none."""
        self.current = name
        taps, crosses = 1, True
        if name:
            site, taps = self.sites[name], self.sites[name].taps
            # No target is made from too few rows. Only three quarters of these are fitted: some samples may be larger.
            rows = rows_expected(site, self.samples, self.how.positions)
            crosses = rows >= LEAST_ROWS_PER_INPUT * site.in_features
        self.fitted, self.held = (Accumulator(taps, self.how.seed, crosses=crosses) for _ in range(2))
        self.unpaired = False
        self.seen = 0  # samples of this site

    def observe(
        self, place: str, batch: int, x: Tensor | None, y: Tensor | None, repair: Repair | None, real: Tensor | None
    ) -> None:
        if self.is_done(place):
            return
        site = self.at[place]
        if site != self.current:
            self.start(site)
        if self.unpaired or (x is None and y is None):
            return
        if x is None or y is None or not self._paired(place, x, y):
            self.unpaired = True
            message = "site %r, batch %d: rows of the two networks cannot be paired; it is fitted to its dense inputs"
            logger.warning(message, site, batch)
            return
        if not x.numel() or not y.numel():  # an empty call adds nothing
            return
        layer = self.dense.get_submodule(place)
        wanted = positions_per_sample(self.sites[site], self.samples, self.how.positions)
        drawn = draw(layer, x, y, wanted, f"{site}:{batch}:0", self.how.seed, real)
        x_GND, y_GNT = drawn.of_inputs(layer, x), drawn.of_outputs(layer, y)
        if repair is not None and repair.dense.shape == repair.compressed.shape == y.shape:  # not if it broadcasts
            others = drawn.of_outputs(layer, repair.dense), drawn.of_outputs(layer, repair.compressed)
            y_GNT = corrected(y_GNT, *others, repair.scale)
        held_N = self._held_out(batch, x_GND.shape[1], drawn)
        for accumulator, part_N in ((self.fitted, ~held_N), (self.held, held_N)):
            index_N = part_N.nonzero().flatten().to(x_GND.device)
            if not len(index_N):
                continue
            try:
                accumulator.update(x_GND[:, index_N], y_GNT[:, index_N])
            except ValueError as error:
                self.odd = batch
                raise DataError(f"site {site!r}, batch {batch}: {error}") from error

    def _paired(self, place: str, x: Tensor, y: Tensor) -> bool:
        """Whether input and output have the same rows, as in a call of one network."""
        if not spatial_dims(self.dense.get_submodule(place)):
            return x.shape[:-1] == y.shape[:-1]
        return x.dim() == y.dim() and (x.dim() < len(self.sites[self.at[place]].weight_shape) or len(x) == len(y))

    def _held_out(self, batch: int, rows: int, drawn: Drawn) -> Tensor:
        """Which rows are held out: every fourth sample, whatever the batch size; every fourth batch without samples."""
        sample_N = drawn.sample_of(rows)
        if sample_N is None:
            return torch.full((rows,), batch % HELD_OUT == HELD_OUT - 1)
        first, self.seen = self.seen, self.seen + drawn.samples
        return (first + sample_N) % HELD_OUT == HELD_OUT - 1

    def is_done(self, place: str) -> bool:
        return self.done is not None and self.at[place] in self.done

    def finish(self, place: str) -> None:
        site = self.at[place]
        if self._put_done(site):
            return
        if self.unpaired or site != self.current or not self.fitted.count:
            self.fit_alone(site, self.own(only=[site])[site])
            return
        row, described = self.rows[site], self.sites[site]
        fitted, held = self.fitted.moments(), self.held.moments() if self.held.count else None
        with_bias = described.chain_bias(self.metric)
        if not with_bias:  # the plan did not count one: without it the mean must be fitted by the weight
            fitted, held = fitted.uncentred(), held and held.uncentred()
        weight = site_weight(self.dense, described)
        weight_GTD = weight.reshape(described.groups, -1, described.in_features)
        beta = choose_beta(weight_GTD, fitted, held)
        moments = self.weighted(site, fitted if held is None else merge([fitted, held]))
        factors, bias = fit_site(described, weight, row.format, row.ranks, moments, beta, self.metric, self.formats)
        format = get_format(row.format, self.formats)
        chain = rebuild(
            self.compressed, described.role, described.names, format, row.ranks, with_bias, described.feeders
        )
        fill(format, chain, factors, bias if with_bias else None, moments)
        self.changed += described.names
        note_done(chain, described, self.done)

    def fit_first(self, sites: Sequence[str], step: Callable[[str], None]) -> None:
        """Fit some sites to their weights, on moments collected in one pass."""
        missing = [name for name in sites if self.done is None or name not in self.done]
        stats = self.own(only=missing) if missing else {}
        for name in sites:
            step(name)
            if not self._put_done(name):
                self.fit_alone(name, stats[name])

    def fit_alone(self, site: str, moments: Moments) -> None:
        """Fit a site to its weight, on moments of the dense network's inputs."""
        described, row, moments = self.sites[site], self.rows[site], self.weighted(site, moments)
        seen = moments if described.chain_bias(self.metric) else moments.uncentred()
        metric, formats, done = seen.two_sided(self.metric), self.formats, self.done
        factorise_site(self.dense, self.compressed, described, row, moments, metric, self.metric, formats, done)
        self.changed += [site, *described.aliases]

    def _put_done(self, site: str) -> bool:
        """Put in the chain that was fitted before; whether there is one."""
        described = self.sites[site]
        there = put_done(self.compressed, described, self.rows[site], self.metric, self.formats, self.done)
        self.changed += [site, *described.aliases] if there else []
        return there

    def weighted(self, site: str, moments: Moments) -> Moments:
        """The moments of a site's inputs, with the dense network's gradients at its output."""
        return moments if self.gradients is None else replaced(moments, gradients=self.gradients[site].gradients)

    def differs(self, module: str) -> bool:
        return any(name == module or name.startswith(module + ".") for name in self.changed)
