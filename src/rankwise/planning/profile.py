"""From statistics and formats to curves: the options of every site, with their cost and predicted error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

from torch import nn

from ..formats import AUTO, FORMATS, Cost, Format, Ranks, SomeFormats, get_formats
from ..formats.both_sides import curve, entry, refuses
from ..formats.front import Front
from ..formats.multilinear import Multilinear
from ..formats.multilinear import curves as raced
from ..formats.race import Entry
from ..formats.weights import site_weight, weight_metrics
from ..latency import AT_HAND, Engine, at_hand, get_engine
from ..latency.grid import Grid, grid_of, rank_step
from ..linalg.two_sided import TwoSided
from ..metrics import FitMetric, get_metric
from ..network.patterns import near
from ..network.site import Site
from ..network.sites import Sites
from ..plan import Curve, Option, dense_option
from ..running.guards import unwrap
from ..running.verbs import verb
from ..statistics import Statistics
from .defaults import DEFAULT_FORMATS, DEPTHWISE, JOINED, formats_for

if TYPE_CHECKING:
    from ..plan import Done

# Sites of one shape are fitted side by side, at most so many, if they have at most so many inputs: beyond, products of
# large matrices take the time, and curves are kept as soon as each is done.
TOGETHER, SIDE_BY_SIDE = 8, 1024


def check_step(round_to: int | str) -> None:
    """Raise a ValueError for a step between ranks that is not "auto" or a number above 0."""
    whole = isinstance(round_to, Integral) and not isinstance(round_to, bool) and round_to > 0
    if round_to != "auto" and not whole:
        raise ValueError(f'round_to must be "auto" or a number above 0, not {round_to!r}')


def site_metric(
    source: Statistics | Sites, site: Site, metric: str | FitMetric, model: nn.Module, shrink: float = 0.0
) -> TwoSided:
    """The metric of a site, shrunk towards the weight metric; a ValueError if it needs statistics and has none."""
    metric = get_metric(metric)
    if not metric.needs_statistics:
        return TwoSided(inputs=weight_metrics(site, next(model.parameters()).device))
    if not isinstance(source, Statistics):
        raise ValueError(
            f'the "{metric}" metric needs statistics: pass rankwise.collect(model, data), or metric="weight"'
        )
    return source.metric(site.name, metric, shrink)


@verb
def profile(
    model: nn.Module,
    source: Statistics | Sites,
    *,
    formats: SomeFormats | None = None,
    metric: str | FitMetric = "input",
    shrink: float = 0.0,
    round_to: int | str = "auto",
    engine: str | Engine | None = None,
    threads: int = 1,
    only: str | Collection[str] | None = None,
    done: Done[Curve] | None = None,
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
) -> dict[str, Curve]:
    """The options of every site: dense, and all that cost less and are not beaten in both cost and error.

    `error(option) = ||G^(1/2) (W - V) Sigma^(1/2)||_F^2 / ||G^(1/2) W Sigma^(1/2)||_F^2`

    Args:
        model: the dense network.
        source: statistics, or only the sites for `metric="weight"`.
        formats: the formats to consider, names or objects, in any order; "auto" for all. A format whose curve needs
            fits is dropped at a site after one fit if others clearly beat it there. By default those of
            `formats_for(engine, site)`.
        metric: "input" (the covariance of each site's input), "diagonal" (its diagonal), "fisher" (with the moment of
            the loss's gradients at the output) or "weight" (Frobenius).
        shrink: share of the weight metric, 0 to 1; see `choose_shrinkage`.
        round_to: ranks are multiples of this; "auto" for what the engine computes at once, see `latency.grid`; without
            an engine 8 if the smaller side is at least 128, else 1.
        engine: where the network will run, if that is known; "auto" for `latency.at_hand`.
        threads: of the engine.
        only: names of the sites to consider; the others only get their dense option.
        done: curves by site that were made with the same arguments; missing ones are added.
        progress: wraps the sites, for a progress bar.

    Returns:
        Curve by site name; a site that must stay dense has one option.

    Raises:
        ValueError: for an unknown format, metric or site (with near names), a share outside 0 to 1, missing
            statistics, or a format that no site can have in the metric.
    """
    model = unwrap(model)
    sites = source.sites if isinstance(source, Statistics) else source
    sites.check_structure(model)
    runs_in = None if engine is None else get_engine(at_hand(model) if engine == AT_HAND else engine, threads)
    check_step(round_to)
    candidates = in_order(
        get_formats((*DEFAULT_FORMATS, DEPTHWISE, *JOINED.values()) if formats is None else formats).values()
    )
    if not candidates:
        raise ValueError(f"no format given; name at least one of {', '.join(DEFAULT_FORMATS)}")
    wanted = set(sites) if only is None else {only} if isinstance(only, str) else set(only)
    if unknown := sorted(wanted - sites.keys()):
        raise ValueError(f"only: there is no site {unknown[0]!r}; near names are: {near(unknown[0], list(sites))}")
    metric = get_metric(metric)
    named = formats not in (None, AUTO) and not (isinstance(formats, Sequence) and AUTO in formats)
    if metric.needs_gradients and named:
        _check_splits(candidates, metric, [site for site in sites.values() if site.name in wanted])
    grid = None if runs_in is None else cache(partial(grid_of, runs_in, model))
    usable = {
        name: [
            format
            for format in candidates
            if not refuses(format, sites[name], metric)
            and (formats is not None or format.name in formats_for(runs_in, sites[name]))
        ]
        for name in sites
        if name in wanted
    }
    curves = _Curves(
        model=model,
        source=source,
        metric=metric,
        shrink=shrink,
        usable=usable,
        step=lambda site: _step(site, round_to, grid),
    )
    made: dict[str, Curve] = {}
    todo: Iterable[Site] = list(sites.values())
    for site in todo if progress is None else progress(todo, "profile"):
        if done is not None and site.name in done:
            made[site.name] = done[site.name]
        elif site.name not in made:
            left = [other for other in sites.values() if other.name not in made and _alike(site, other)]
            group = [other for other in left if done is None or other.name not in done][:TOGETHER]
            for name, found in curves.of(group).items():
                made[name] = found
                if done is not None:
                    done[name] = found
    return {name: made[name] for name in sites}


def _alike(site: Site, other: Site) -> bool:
    """Whether the formats of two sites are fitted side by side."""
    if site.in_features > SIDE_BY_SIDE:
        return site.name == other.name
    return (site.kind, site.weight_shape, site.groups) == (other.kind, other.weight_shape, other.groups)


@dataclass(frozen=True, kw_only=True)
class _Curves:
    """Makes the curves of the sites of a network.

    Attributes:
        usable: formats by site, closed forms first.
        step: between ranks of a site.
    """

    model: nn.Module
    source: Statistics | Sites
    metric: FitMetric
    shrink: float
    usable: Mapping[str, Sequence[Format]]
    step: Callable[[Site], int]

    def of(self, group: Sequence[Site]) -> dict[str, Curve]:
        """The curves of some sites that are alike: closed forms, and then what a race leaves of those to be fitted."""
        options = {site.name: [dense_option(site)] for site in group}
        entries: dict[str, Entry] = {}
        for site in group:
            if not (formats := self.usable.get(site.name, ())):
                continue
            weight, step = site_weight(self.model, site), self.step(site)
            two_sided = site_metric(self.source, site, self.metric, self.model, self.shrink)
            front = Front()
            for format in formats:
                if not isinstance(format, Multilinear):
                    found = self._counted(format, site, curve(format, site, weight, two_sided, step, front))
                    biases = site.chain_bias(self.metric) * site.out_features
                    front.add((Cost(option.params - biases, option.macs), option.error) for option in found)
                    options[site.name] += found
            if fitted := [format for format in formats if isinstance(format, Multilinear)]:
                entries[site.name] = entry(fitted, site, weight, two_sided, step, front)
        for (name, one), made in zip(entries.items(), raced(list(entries.values())), strict=True):
            for format in self.usable[name]:
                if format in one.formats:
                    options[name] += self._counted(format, one.site, made[format.name])
        return {name: tuple(found) for name, found in options.items()}

    def _counted(self, format: Format, site: Site, errors: Iterable[tuple[Ranks, float]]) -> list[Option]:
        """Options that cost less than the dense layer."""
        bias, found = site.chain_bias(self.metric), []
        for ranks, error in errors:
            params, macs = format.cost(site, ranks, bias)
            # An embedding multiplies nothing: its factors save parameters, although they add MACs.
            if params < site.params and (macs < site.macs or not site.macs):
                found.append(Option(format=format.name, ranks=ranks, params=params, macs=macs, error=error))
        return found


def _step(site: Site, round_to: int | str, grid: Callable[[], Grid] | None) -> int:
    """The step between ranks of a site, for an engine's grid if there is one."""
    if round_to != "auto":
        return int(round_to)
    return rank_step(site) if grid is None else grid().step(site)


def in_order(formats: Iterable[Format]) -> list[Format]:
    """Formats in the order in which their curves are made, whatever order a user wrote them in.

    Closed forms come first: a format whose curve needs many fits is compared with all before it, and dropped after one
    fit if they clearly beat it.
    """
    places = {name: place for place, name in enumerate(FORMATS)}
    return sorted(formats, key=lambda one: (one.estimates, places.get(type(one).name, len(places)), one.name))


def _check_splits(formats: Sequence[Format], metric: FitMetric, sites: Sequence[Site]) -> None:
    """Refuse a named format that suits some sites, but none of them in a metric that weights outputs."""
    for format in formats:
        suited = [site for site in sites if format.refuses(site) is None]
        reasons = [refuses(format, site, metric) for site in suited]
        if reasons and all(reasons):
            raise ValueError(f"formats: {reasons[0]}")
