"""Curves of forms that must be fitted: which fits are worth their time, and curves through those.

The forms of a site run against each other. A family of ranks is out before any fit if its bound shows that it cannot be
the best anywhere; out after one fit if that is clearly beaten; else it is fitted at a few ranks, and a smooth curve
goes through the errors. A race asks for fits and waits for the answers, so that sites of one shape can be fitted side
by side: it is a generator. What it asks for follows from its own site alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

from torch import Tensor

from ..linalg.metric import Metric
from ..network.site import Site
from .base import Cost, Ranks, Rivals
from .bounds import Bounds
from .front import Front
from .network import Network
from .shape import Shape

# Families are fitted where they have these shares of their largest MACs, the second one first; without rivals up to the
# largest itself.
MARKS, FIRST = (0.0, 0.15, 0.45, 0.8), 1
# Between fits the logarithm of the error is a polynomial of this power of the cost, between that which makes a single
# rank proportional to it (1) and that which makes ranks that grow together so (1/2).
POWER = 0.75
# A family is worth a fit where its bound is at most this many times the least error at no greater cost: what would gain
# less at one site does not change a plan. It is worth further fits if the first one promises that, too.
WORTH = 0.95
# Forms that cost less than all closed ones are of no use with larger errors than this.
POOR = 0.5
# No family needs larger ranks than those with this error.
ENOUGH = 1e-3
# A fit holds a square matrix over the bond states of a factor, and curves stop before it gets large.
CURVE_STATES = 1024
# More than any option costs.
UNLIMITED = Cost(10**18, 10**18)


class Runner(Protocol):
    """A format in a race: see `Multilinear`."""

    @property
    def name(self) -> str: ...

    @property
    def power(self) -> float: ...

    def network(self, shape: Shape, ranks: Ranks) -> Network: ...

    def ladders(self, shape: Shape, step: int) -> list[list[Ranks]]: ...

    def states(self, site: Site, ranks: Ranks) -> int: ...

    def saves(self, site: Site, ranks: Ranks) -> bool: ...

    def cost(self, site: Site, ranks: Ranks, bias: bool) -> Cost: ...


class Entry(NamedTuple):
    """What runs at one site: formats in their order, none of which refuses the site.

    Attributes:
        weight: O x I/G [x kernel].
        metrics: one per group.
        step: ranks are multiples of it, where that makes sense.
        rivals: the least error of other formats at no greater cost; None to fit every family.
    """

    formats: Sequence[Runner]
    site: Site
    weight: Tensor
    metrics: Sequence[Metric]
    step: int
    rivals: Rivals | None


class Asked(NamedTuple):
    """Fits that a race waits for: of one format, at some ranks. Races of sites alike ask in the order of `turn`."""

    turn: tuple[int, int]
    format: Runner
    ranks: tuple[Ranks, ...]


Curves = dict[str, list[tuple[Ranks, float]]]
Race = Generator[Asked, Sequence[float], Curves]
Climb = Generator[Asked, Sequence[float], dict[int, float]]


class Family(NamedTuple):
    """Ranks of one format from small to large, with their costs and bounds."""

    number: int
    format: Runner
    ladder: list[Ranks]
    costs: list[Cost]
    bounds: list[float]

    def promised(self, error: float) -> float:
        """What a long fit makes of the error of a quick one."""
        return min(error, 1.0) ** self.format.power

    def marks(self) -> list[int]:
        """Places nearest to the shares of the largest MACs."""
        most = self.costs[-1].macs
        return [min(range(len(self.costs)), key=lambda at: abs(self.costs[at].macs - mark * most)) for mark in MARKS]

    def asked(self, places: Sequence[int], turn: int) -> Asked:
        return Asked((self.number, turn), self.format, tuple(self.ladder[place] for place in places))


def race(entry: Entry) -> Race:
    """The race at one site.

    Yields:
        Fits to make; to be answered with their relative squared errors.

    Returns:
        For each format the ranks of its families that are left, with their errors.
    """
    front = Front()
    poor = POOR if entry.rivals is not None and math.isfinite(entry.rivals(UNLIMITED)) else math.inf
    climbed: dict[str, list[list[Ranks]]] = {format.name: [] for format in entry.formats}
    found: dict[str, dict[Ranks, float]] = {format.name: {} for format in entry.formats}
    for family in _families(entry):
        rivals = entry.rivals
        least = [math.inf if rivals is None else min(rivals(cost), front(cost)) for cost in family.costs]
        curve = yield from _fitted(family, least, *((math.inf, 0.0) if rivals is None else (poor, ENOUGH)))
        front.add((family.costs[place], family.promised(error)) for place, error in curve.items())
        ladder, errors = [family.ladder[place] for place in curve], found[family.format.name]
        climbed[family.format.name].append(ladder)
        for ranks, error in zip(ladder, curve.values(), strict=True):
            errors[ranks] = min(error, errors.get(ranks, 1.0))
    for name, ladders in climbed.items():
        # A smaller error found by one family also bounds the larger ranks of families that share the same ranks. A
        # second pass carries what the first one found in later families.
        for ladder in 2 * ladders:
            for less, ranks in pairwise(ladder):
                found[name][ranks] = min(found[name][less], found[name][ranks])
    return {name: list(errors.items()) for name, errors in found.items()}


def _fitted(family: Family, least: Sequence[float], poor: float, enough: float) -> Climb:
    """Errors at the places of a family that may be of use; none if it is beaten.

    Args:
        family: its ranks.
        least: error of others at no greater cost, by place.
        poor: an error above which a place is of no use.
        enough: an error below which nothing is to be gained.
    """
    pairs = zip(family.bounds, least, strict=True)
    hopeful = [n for n, (bound, best) in enumerate(pairs) if best > enough and bound <= WORTH * min(best, poor)]
    if not hopeful:
        return {}
    marks = family.marks()
    first = marks[FIRST] if marks[FIRST] in hopeful else min(hopeful, key=lambda place: abs(place - marks[FIRST]))
    errors = dict(zip([first], (yield family.asked([first], FIRST)), strict=True))
    if family.promised(errors[first]) > WORTH * least[first]:
        return {}
    if not enough:  # every family is wanted, to its end
        marks[-1] = len(family.ladder) - 1
    begin = max(at for at in marks if at <= hopeful[0])
    end = min((at for at in marks if at >= hopeful[-1]), default=marks[-1])
    for number, some in enumerate((marks[:-1], marks[-1:]), start=len(MARKS)):
        found = [at for at, error in errors.items() if error <= enough]
        further = sorted({at for at in some if begin <= at <= min([end, *found])} - errors.keys())
        if further:
            errors |= zip(further, (yield family.asked(further, number)), strict=True)
    return through(errors, {place: family.costs[place].macs for place in range(min(errors), max(errors) + 1)})


def _families(entry: Entry) -> Iterator[Family]:
    site, shape, number = entry.site, Shape.of_site(entry.site), 0
    bounds = Bounds(site, entry.weight, entry.metrics, entry.step)
    for format in entry.formats:
        for ladder in format.ladders(shape, entry.step):
            useful = [one for one in ladder if format.saves(site, one) and format.states(site, one) <= CURVE_STATES]
            if useful:
                costs = [format.cost(site, ranks, False) for ranks in useful]
                yield Family(number, format, useful, costs, [bounds(format.network(shape, ranks)) for ranks in useful])
                number += 1


def through(errors: Mapping[int, float], costs: Mapping[int, int]) -> dict[int, float]:
    """Errors at all places from those at some, the first and the last among them; they never rise.

    The polynomial (see `POWER`) goes through all known errors, and between two of them it stays between both.

    Args:
        errors: known ones by place.
        costs: of all places, rising.
    """
    floor = 1e-12
    known = sorted(errors)
    falling = list(accumulate((errors[place] for place in known), min, initial=1.0))[1:]
    heights = [math.log(max(error, floor)) for error in falling]
    amounts = [costs[place] ** POWER for place in known]
    result = {}
    for place, cost in costs.items():
        if place in errors:
            result[place] = falling[known.index(place)]
            continue
        after = next(number for number, other in enumerate(known) if other > place)
        height = _polynomial(amounts, heights, cost**POWER)
        result[place] = math.exp(min(max(height, heights[after]), heights[after - 1]))
    return dict(zip(result, accumulate(result.values(), min), strict=True))


def _polynomial(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """The polynomial of the lowest degree through the points (Lagrange)."""
    terms = zip(xs, ys, strict=True)
    return sum(y * math.prod((x - other) / (own - other) for other in xs if other != own) for own, y in terms)


def run(entries: Sequence[Entry], fits: Callable[[Asked, Sequence[Entry]], Sequence[Sequence[float]]]) -> list[Curves]:
    """The races of several sites next to each other.

    Args:
        entries: one per site.
        fits: makes the same fits for some of the sites, and returns their errors by site and ranks.
    """
    races = [race(entry) for entry in entries]
    results: list[Curves] = [{} for _ in entries]
    waiting: dict[int, Asked] = {}

    def go_on(number: int, errors: Sequence[float] | None) -> None:
        try:
            waiting[number] = next(races[number]) if errors is None else races[number].send(errors)
        except StopIteration as end:
            results[number] = end.value

    for number in range(len(races)):
        go_on(number, None)
    while waiting:
        # Those that are furthest behind first: the others then ask for the same as often as possible.
        asked = min(waiting.values(), key=lambda one: (one.turn, one.ranks))
        numbers = [number for number, other in waiting.items() if other == asked]
        for number in numbers:
            del waiting[number]
        for number, errors in zip(numbers, fits(asked, [entries[number] for number in numbers]), strict=True):
            go_on(number, errors)
    return results
