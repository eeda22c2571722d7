"""Apply a plan: a new model with the planned sites factorised."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ..formats import Format, SomeFormats, get_format, get_formats
from ..formats.both_sides import refuses
from ..names import parted
from ..network.find import find, total_macs
from ..network.replacing import put
from ..network.sites import Sites
from ..network.ties import Ties
from ..plan import DENSE, Plan, site_of
from ..running.batches import Batches
from ..running.copying import copied
from ..running.example import with_example
from ..running.guards import unwrap
from ..running.pristine import pristine
from ..running.verbs import verb
from ..statistics import Statistics
from ..statistics.shrinkage import check_shrink
from .check import check_result
from .one_shot import one_shot
from .sequential import Sequentially, sequential

if TYPE_CHECKING:
    from ..plan import Done
    from ..work import Layer

logger = logging.getLogger("rankwise")


@verb
def factorise(
    model: nn.Module,
    plan: Plan,
    stats: Statistics | Sites | None = None,
    *,
    data: Iterable[Any] | None = None,
    shrink: float | None = None,
    step: Callable[[str], None] = lambda site: None,
    formats: SomeFormats | None = None,
    example: Any = None,
    done: Done[Layer] | None = None,
    **sequentially: Any,
) -> nn.Module:
    """A copy of the model with the plan's sites factorised; the model itself is unchanged.

    With `data` sequentially: `min E || y_dense - (V x_compressed + c) ||^2` for each site in execution order. With
    statistics alone in one shot: `min ||(W - V) Cov(x)^(1/2)||_F`. With neither, in the weight metric. A plan chosen in
    the weight metric counts no new biases, so none are added, with `data` either.

    Args:
        model: the dense network.
        plan: from `choose`, or edited by hand.
        stats: statistics for one-shot, or the sites for a plan in the weight metric. The metric "fisher" needs
            statistics with gradients, also with `data`.
        data: calibration batches, for sequential fits.
        shrink: share of the weight metric in one-shot fits, 0 to 1; by default the plan's.
        step: called with each site's name before it is fitted.
        formats: objects that replace the registered ones of the same names, such as a `SparseLowRank` with its own
            importance; as for `choose`.
        example: the batch on which the networks are compared, as for `collect`; by default the one that the sites were
            found with. Statistics from a file have none.
        done: layers fitted before with the same arguments, by site: they are used as they are, and new ones are added
            at once, so that a stopped run can resume. `compress` keeps them in a folder.
        **sequentially: positions, seed, mask, engine and spill_above of `Sequentially`, with data.

    Returns:
        A model of the same class, each planned site replaced by a chain of plain layers.

    Raises:
        TypeError: for an unknown argument.
        ValueError: if the plan belongs to another network, something that it needs is missing, or `shrink` is given
            with data, whose own statistics are used.

    Example:
        >>> import torch, rankwise as rw
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
        >>> data = [torch.randn(16, 32) for _ in range(4)]
        >>> plan = rw.choose(model, rw.collect(model, data), keep={"params": 0.5})
        >>> factorise(model, plan, data=data)[0].format.name
        'svd'
    """
    model = unwrap(model)
    metric, collected = plan.fit_metric, stats if isinstance(stats, Statistics) else None
    if data is None and metric.needs_statistics and collected is None:
        raise ValueError(
            f"a plan in the {plan.metric} metric needs data= (sequential) or statistics (one-shot); pass one of them, "
            'or choose with metric="weight"'
        )
    if metric.needs_gradients and collected is None:
        raise ValueError(
            f"a plan in the {plan.metric} metric needs statistics also with data=, for the gradients at the outputs: "
            "pass rankwise.collect(model, data, gradients=True)"
        )
    if data is not None and shrink:
        raise ValueError(
            f"shrink={shrink} has no effect with data=, whose own statistics are used; leave out one of them"
        )
    shrink = check_shrink(plan.shrink if shrink is None else shrink)
    how: Sequentially
    (how,) = parted(sequentially, Sequentially)
    known = get_formats(formats or ())
    sites = stats.sites if isinstance(stats, Statistics) else stats
    if sites is not None:
        check_plan(plan, sites, known)  # before the network runs
        example = sites.example if example is None else example
    batches = None if data is None else Batches.of(data)
    if batches is not None:
        example, batches = with_example(model, batches, example)
    if sites is None:
        if batches is None:
            raise ValueError(f"a plan in the {plan.metric} metric needs the sites: pass rankwise.find(model, example)")
        sites = planned_sites(model, example, plan)
        check_plan(plan, sites, known)
    sites.check_structure(model)
    if metric.needs_gradients and collected is not None:
        for row in plan.factorised:
            collected.require(row.site, gradients=True)
    compressed = copied(model)
    with pristine(model), pristine(compressed):
        if batches is None:
            used = collected if metric.needs_statistics else None
            one_shot(model, compressed, plan, sites, used, shrink, known, done)
        else:
            sequential(
                model,
                compressed,
                plan,
                sites,
                batches,
                example,
                how,
                gradients=collected if metric.needs_gradients else None,
                step=step,
                formats=known,
                done=done,
            )
    if example is not None:
        _check(model, compressed, plan, sites, example, known)
    for row in plan.factorised:  # the chains were built while the copy was in eval mode
        for name in sites[row.site].names:
            compressed.get_submodule(name).train(model.get_submodule(name).training)
    return compressed


def planned_sites(model: nn.Module, example: Any, plan: Plan) -> Sites:
    """The sites of a network, joint ones if the plan was made for them."""
    planned = {row.site for row in plan.rows}
    sites = find(model, example)
    ways = (find(model, example, joint=joint) for joint in (True, ("hidden",), ("heads",)))
    return sites if planned == sites.keys() else next((found for found in ways if found.keys() == planned), sites)


def _check(
    model: nn.Module, compressed: nn.Module, plan: Plan, sites: Sites, example: Any, formats: Mapping[str, Format]
) -> None:
    """Run the result once and compare it with the plan, recounted because the plan may be for another example."""
    planned = {
        row.site: get_format(row.format, formats).cost(site, row.ranks, site.chain_bias(plan.metric)).macs
        for row in plan.factorised
        for site in [sites[row.site]]
    }
    if planned:
        alike = example is sites.example or total_macs(model, example) == sites.total_macs
        check_result(model, compressed, sites, planned, example, alike)


@verb
def factorise_(model: nn.Module, plan: Plan, stats: Statistics | Sites | None = None, **options: Any) -> nn.Module:
    """`factorise` in place: the model's sites are replaced once all of them are fitted."""
    compressed = factorise(model, plan, stats, **options)
    model = unwrap(model)
    ties = Ties(model)
    for row in plan.factorised:
        put(model, {name: compressed.get_submodule(name) for name in ties.together(row.site)})
    return model


def check_plan(plan: Plan, sites: Sites, formats: Mapping[str, Format] | None = None) -> None:
    """Raise a ValueError that names the row of a plan that does not fit the network, and why."""
    for row in plan.rows:
        site = site_of(row, sites)
        if row.format == DENSE:
            continue
        format = get_format(row.format, formats)
        if reason := refuses(format, site, plan.metric):
            raise ValueError(f"site {row.site!r} cannot have format {row.format!r}: {reason}")
        format.check(site, row.ranks)
    if plan.fingerprint and plan.fingerprint != sites.fingerprint:
        raise ValueError("the plan was made for a network of another structure; choose a plan for this one")
