"""Nested profiles: ranks of all layers for several budgets, each within the larger ones.

Letters: O options of a layer.

Source: Zaccone, Laskaridis, Ciccone, Horvath, "FlexRank", 2026, arXiv 2602.02680 (nested profiles); the sweep over a
multiplier instead of a dynamic programme, whose choices are nested by themselves: Everett, "Generalized Lagrange
Multiplier Method", 1963.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from ..formats.svd import SVD
from ..network.sites import Sites
from ..plan import DENSE, Curve, dense_option
from ..planning.profile import profile
from ..planning.units import Macs, Params
from ..ranks.budgeted import loss
from ..ranks.solvers.fronts import front
from ..running.guards import unwrap
from ..running.verbs import verb
from ..statistics import Statistics
from ..training.trained_sites import trained_sites

ROUNDS = 60  # bisections of the multiplier: more than a float64 can tell apart


@verb
def nested_profiles(
    model: nn.Module,
    source: Sites | Statistics,
    keeps: Sequence[float],
    *,
    unit: str = "params",
    only: str | Iterable[str] = "*",
) -> list[dict[str, int]]:
    """Ranks for each share of the dense network's cost, nested: a smaller share has no larger rank anywhere.

        min over options  sum_i -log(1 - error_i(o_i)) + mu cost_i(o_i)

    separates by layers for a given mu, and a larger mu never picks a dearer option. For each share the least mu is
    taken that meets it, so that all the ranks come from one sweep.

    Args:
        model: the dense network.
        source: its sites, or its statistics for errors of the outputs.
        keeps: shares of the whole network's cost, at most 1.
        unit: of the cost, "params" or "macs".
        only: patterns of the sites that may have a smaller rank; all others stay dense and count in full.

    Returns:
        For each share the ranks by name of these sites. Sites that stay dense have their full rank, so that an ordered
        layer computes them.

    Raises:
        ValueError: for another unit, a share outside 0 to 1, or one that cannot be met, with the least that can.

    Example:
        >>> import rankwise as rw, torch
        >>> model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
        >>> large, small = nested_profiles(model, rw.find(model, torch.randn(1, 32)), [0.8, 0.4])
        >>> all(small[name] <= large[name] for name in large)
        True
    """
    model = unwrap(model)
    units = {each.name: each for each in (Macs, Params)}
    if unit not in units:
        raise ValueError(f"unit {unit!r} is not one of {', '.join(sorted(units))}")
    if wrong := [keep for keep in keeps if not 0 < keep <= 1]:
        raise ValueError(f"a profile keeps {wrong[0]} of the {unit}; it is a share above 0 and at most 1")
    sites = source.sites if isinstance(source, Statistics) else source
    metric = "input" if isinstance(source, Statistics) else "weight"
    names = [site.name for site in trained_sites(model, sites, only, "make nested")]
    profiled = profile(model, source, formats="svd", metric=metric, round_to=1, only=names)
    curves = {name: profiled[name] for name in names}
    count = units[unit](model, sites)
    costs = {name: count.costs(sites[name], curve) for name, curve in curves.items()}
    paths = {name: _path(curve, costs[name]) for name, curve in curves.items()}
    dense = {name: count.costs(sites[name], [dense_option(sites[name])])[0] for name in curves}
    whole = sum(p.numel() for p in model.parameters()) if unit == "params" else sites.total_macs
    rest = whole - sum(dense.values())

    def total(mu: float) -> float:
        return rest + sum(path[_best(path, mu)][1] for path in paths.values())

    profiles = []
    for keep in keeps:
        low, high = 0.0, 1.0
        while total(high) > keep * whole and high < 1e12:
            high *= 10
        if total(high) > keep * whole:
            raise ValueError(f"no ranks keep {keep:g} of the {unit}; the least is {total(high) / whole:.3g}")
        for _ in range(ROUNDS if total(low) > keep * whole else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if total(middle) > keep * whole else (low, middle)
        mu = high if total(low) > keep * whole else low
        profiles.append({name: _rank(sites, curves, name, path[_best(path, mu)][2]) for name, path in paths.items()})
    return profiles


Path = list[tuple[float, float, int]]


def _path(curve: Curve, costs: Sequence[float]) -> Path:
    """Loss, cost and place of the options that no other beats, the cheapest first."""
    places = front(list(costs), [option.error for option in curve])
    return [(loss(curve[place].error), costs[place], place) for place in places]


def _best(path: Path, mu: float) -> int:
    """The option with the least loss plus mu times cost; the cheapest of equal ones."""
    return min(range(len(path)), key=lambda at: (path[at][0] + mu * path[at][1], path[at][1]))


def _rank(sites: Sites, curves: Mapping[str, Curve], name: str, place: int) -> int:
    option = curves[name][place]
    return SVD().limits(sites[name])[0] if option.format == DENSE else option.ranks[0]
