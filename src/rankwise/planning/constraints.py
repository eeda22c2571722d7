"""Constraints: the options that they leave to each site, and the reason if they leave no choice."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral

from ..formats import Format, get_format
from ..layers.kinds import Role
from ..names import SETTINGS
from ..network.site import Site
from ..network.sites import Sites
from ..plan import DENSE, Curve, Option, dense_option
from .budgets import is_number, plain

Pin = str | tuple[str | Format, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What a user asks of the sites that patterns name.

    Attributes:
        include: patterns of the sites that may be factorised. Embeddings and heads of language models need a pattern
            other than "*": `["*", "lm_head"]` is everything and the head.
        ignore: patterns of sites that stay dense.
        pin: pattern to "dense", "format:rank[,rank]", "format:name=value[,name=value]" or (format, ranks), where
            the format is a name, with settings or without ("stt:slices=4:8,8,4"), or an object.
        floor: pattern to the least rank, a number or a fraction of the largest.
        cap: pattern to the largest rank, likewise.
        tie: patterns; all sites that match one get the same format and ranks.
        uniform: whether only hidden units leave, the same number of all hidden layers of one width.

    Raises:
        ValueError: for a floor or cap that is not a number above 0.
    """

    include: str | Sequence[str] = ("*",)
    ignore: str | Sequence[str] = ()
    pin: Mapping[str, Pin] = field(default_factory=dict)
    floor: Mapping[str, float] = field(default_factory=dict)
    cap: Mapping[str, float] = field(default_factory=dict)
    tie: str | Sequence[str] = ()
    uniform: bool = False

    def __post_init__(self) -> None:
        for word, bounds in (("floor", self.floor), ("cap", self.cap)):
            for pattern, value in bounds.items():
                if not is_number(value) or not value > 0:
                    raise ValueError(f"the {word} of {pattern!r} must be a rank or a fraction up to 1.0, not {value!r}")

    @property
    def patterns(self) -> list[str]:
        """All patterns."""
        several = [[each] if isinstance(each, str) else each for each in (self.include, self.ignore, self.tie)]
        return [*several[0], *several[1], *self.pin, *self.floor, *self.cap, *several[2]]

    @property
    def pinned_formats(self) -> dict[str, Format]:
        """Formats that pins name as objects, by name."""
        held = [wanted[0] for wanted in self.pin.values() if isinstance(wanted, (tuple, list)) and wanted]
        return {format.name: format for format in held if isinstance(format, Format)}

    def free(self, sites: Sites) -> set[str]:
        """Names of the sites that are included and not ignored."""
        return {site.name for site in sites.included(self.include)} - {site.name for site in sites.select(self.ignore)}

    def reasons(self, sites: Sites) -> dict[str, str]:
        """Why each site stays dense; "" if it may be factorised.

        Raises:
            ValueError: if only hidden units may leave, and there are none, or another site is pinned.
        """
        matched = {site.name for site in sites.select(self.include)}
        included = {site.name for site in sites.included(self.include)}
        ignored = {site.name for site in sites.select(self.ignore)}
        pinned = {site.name for pattern in self.pin for site in sites.select([pattern])}
        others = {name for name, site in sites.items() if site.role is not Role.HIDDEN} if self.uniform else set[str]()
        if self.uniform and len(others) == len(sites):
            raise ValueError(
                "uniform is for hidden units, and there are none among the sites: find or collect them with "
                "joint=True, and give no latency budget"
            )
        if wrong := sorted(others & pinned):
            raise ValueError(f"site {wrong[0]!r} is pinned, but uniform leaves all but hidden units dense; drop one")

        def reason(name: str) -> str:
            if name in ignored:
                return "ignored"
            if name in others:
                return "uniform leaves all but hidden units dense"
            if name in included or name in pinned:
                return ""
            return (name in matched and sites[name].unless_named) or "not included"

        return {name: site.dense_because or reason(name) for name, site in sites.items()}

    def options(
        self,
        sites: Sites,
        curves: Mapping[str, Curve],
        fitted: Callable[[Site, Pin], Option],
        formats: Mapping[str, Format] | None = None,
    ) -> dict[str, tuple[Curve, str]]:
        """By site name the remaining options, and the reason if a constraint left no choice.

        Args:
            curves: options by site name; a site that stays dense needs none.
            fitted: makes the option that a pin names.

        Raises:
            ValueError: for a pattern that matches nothing, or constraints that contradict each other.
        """
        ignored = {site.name for site in sites.select(self.ignore)}
        result: dict[str, tuple[Curve, str]] = {}
        for name, reason in self.reasons(sites).items():
            free = not reason and name in curves
            result[name] = tuple(curves[name]) if free else (dense_option(sites[name]),), reason
        pinned = self._pinned(sites, ignored)
        for name, pattern in pinned.items():
            result[name] = (fitted(sites[name], self.pin[pattern]),), f"pinned by {pattern!r}"
        for bound, least in ((self.floor, True), (self.cap, False)):
            for pattern, value in bound.items():
                for site in sites.select([pattern]):
                    curve, why = result[site.name]
                    if not why or site.name in pinned:
                        kept = tuple(o for o in curve if _allowed(site, o, value, least, formats))
                        if not kept:
                            raise ValueError(_too_tight(site, curve, why, pattern, value, least))
                        result[site.name] = kept, why
        return result

    def _pinned(self, sites: Sites, ignored: set[str]) -> dict[str, str]:
        """The pattern that pins each pinned site."""
        pinned: dict[str, str] = {}
        for pattern, wanted in self.pin.items():
            for site in sites.select([pattern]):
                if site.name in pinned and parse_pin(self.pin[pinned[site.name]]) != parse_pin(wanted):
                    raise ValueError(
                        f"site {site.name!r} is pinned twice, by {pinned[site.name]!r} and {pattern!r}; keep one"
                    )
                if site.name in ignored:
                    raise ValueError(f"site {site.name!r} is both ignored and pinned by {pattern!r}; drop one of them")
                pinned[site.name] = pattern
        return pinned


def _too_tight(site: Site, curve: Curve, why: str, pattern: str, value: float, least: bool) -> str:
    word, sense = ("floor", "at least") if least else ("cap", "at most")
    pinned_to = f"{why} to {curve[0].format} {list(curve[0].ranks)}, so " if why else ""
    return (
        f"site {site.name!r}: {pinned_to}no option has its ranks {sense} {value}, the {word} of {pattern!r}; change "
        f"the {word}{' or the pin' if why else ''}"
    )


def _allowed(site: Site, option: Option, value: float, least: bool, formats: Mapping[str, Format] | None) -> bool:
    """Whether an option's ranks keep to a floor (`least`) or a cap."""
    if option.format == DENSE:
        return least
    value = plain(value)
    for rank, limit in zip(option.ranks, get_format(option.format, formats).limits(site), strict=True):
        bound = value * limit if isinstance(value, float) and value <= 1 else value
        if rank < bound if least else rank > bound:
            return False
    return True


def parse_pin(wanted: Pin) -> tuple[str, tuple[int, ...] | dict[str, float]]:
    """Format and ranks of a pin, written "dense", "svd:16", "tucker2:8,12" or ("tucker2", (8, 12)).

    Settings of a format stand before the ranks, "stt:slices=4:8,8,4" or ("stt:slices=4", (8, 8, 4)). Parameters as the
    format's literature names them, "slr:k=16,sr=0.5,rr=0.5", become a mapping.
    """
    error = ValueError(f'a pin is "dense" or "format:rank[,rank]", for instance "svd:16", not {wanted!r}')
    if isinstance(wanted, str):
        if wanted == DENSE:
            return wanted, ()
        name, _, numbers = wanted.rpartition(":")
        if settings := SETTINGS.get(name, {}).keys() & re.findall(r"(\w+)=", numbers):
            raise ValueError(
                f"the pin {wanted!r} has {' and '.join(sorted(settings))} of the format, and no ranks; add them, for "
                f'instance "{wanted}:8,8"'
            )
        pairs = [part.partition("=") for part in numbers.split(",")]
        try:
            if name and all(equals for _, equals, _ in pairs):
                return name, {setting.strip(): float(value) for setting, _, value in pairs}
            ranks = tuple(int(number) for number in numbers.split(","))
        except ValueError:
            raise error from None
    else:
        try:
            named, ranks = wanted[0], tuple(wanted[1])
            name = named.name if isinstance(named, Format) else named
        except (TypeError, IndexError):
            raise error from None
        if len(wanted) != 2 or not all(isinstance(rank, Integral) and not isinstance(rank, bool) for rank in ranks):
            raise error
        ranks = tuple(int(rank) for rank in ranks)
    if not isinstance(name, str) or not name or (name == DENSE and ranks):
        raise error
    return name, ranks
