"""Groups of sites that get one format and the same ranks; a rule sees each group as one site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..formats import Ranks
from ..layers.kinds import Role
from ..network.site import Site
from ..network.sites import Sites
from ..plan import Curve, Option


@dataclass(frozen=True)
class SiteGroup:
    """Sites that are decided together; most groups hold a single one.

    Attributes:
        curves: options by site name; all curves have the same format and ranks at the same place.
        reasons: by site name, why a constraint left no choice, else "".
        pattern: the pattern that ties the sites, or "uniform"; "" for a single one.
    """

    curves: Mapping[str, Curve]
    reasons: Mapping[str, str]
    pattern: str = ""

    @property
    def name(self) -> str:
        """Name of the first site, which stands for all."""
        return next(iter(self.curves))

    @cached_property
    def options(self) -> Curve:
        """What a rule chooses from: counts and errors are sums over the sites."""
        if len(self.curves) == 1:
            return self.curves[self.name]
        return tuple(map(summed, zip(*self.curves.values(), strict=True)))

    @cached_property
    def _places(self) -> dict[tuple[str, Ranks], int]:
        return {(option.format, option.ranks): place for place, option in enumerate(self.options)}

    def own(self, option: Option) -> dict[str, Option]:
        """What an option of the group means for each of its sites."""
        return {name: curve[0] for name, curve in self.curves_of((option,)).items()}

    def curves_of(self, options: Curve) -> Mapping[str, Curve]:
        """What some options of the group mean for each of its sites."""
        if options is self.options:
            return self.curves
        if len(self.curves) == 1:
            return {self.name: options}
        places = [self._places[option.format, option.ranks] for option in options]
        return {name: tuple(curve[place] for place in places) for name, curve in self.curves.items()}

    def told(self, why: str) -> str:
        """A rule's reason, marked as one for the whole group."""
        return f"tied by {self.pattern!r}, of {len(self.curves)} layers together: {why}" if self.pattern else why


def summed(options: Sequence[Option]) -> Option:
    """One option for several sites of the same format and ranks.

    Example:
        >>> summed([Option(format="svd", ranks=(2,), params=20, macs=50, error=0.1)] * 2)
        Option(format='svd', ranks=(2,), params=40, macs=100, error=0.2)
    """
    return Option(
        format=options[0].format,
        ranks=options[0].ranks,
        params=sum(option.params for option in options),
        macs=sum(option.macs for option in options),
        error=sum(option.error for option in options),
    )


def group_sites(
    sites: Sites,
    options: Mapping[str, tuple[Curve, str]],
    tie: str | Sequence[str] = (),
    uniform: bool = False,
) -> tuple[SiteGroup, ...]:
    """Groups that hold every site once, in execution order of their first sites.

    Args:
        options: what the constraints leave to each site, and the reason if there is no choice.
        tie: patterns; the sites that match one get the same format and ranks.
        uniform: tie the hidden units of all layers of one width.

    Raises:
        ValueError: for a pattern that matches one site or none, sites that differ in shape or are tied twice, or a
            group whose constraints contradict each other.
    """
    tied: dict[str, tuple[str, list[Site]]] = {}
    for pattern in [tie] if isinstance(tie, str) else tie:
        members = sites.select([pattern])
        if len(members) == 1:
            raise ValueError(f"tie {pattern!r} matches only site {members[0].name!r}; a group needs two or more")
        for site in members:
            if site.name in tied:
                raise ValueError(f"site {site.name!r} is tied by {tied[site.name][0]!r} and {pattern!r}; keep one")
            _check_shape(members[0], site, pattern)
            tied[site.name] = pattern, members
    if uniform:
        hidden = [site for site in sites.values() if site.role is Role.HIDDEN and not site.dense_because]
        for site in hidden:
            if site.name in tied:
                raise ValueError(f"site {site.name!r} is tied by uniform and {tied[site.name][0]!r}; drop the tie")
        for site in hidden:
            tied[site.name] = "uniform", [other for other in hidden if other.in_features == site.in_features]
    groups = []
    for name, (curve, reason) in options.items():
        if name not in tied:
            groups.append(SiteGroup({name: curve}, {name: reason}))
        elif name == tied[name][1][0].name:
            pattern, members = tied[name]
            groups.append(_group(pattern, {site.name: options[site.name] for site in members}))
    return tuple(groups)


def _group(pattern: str, options: Mapping[str, tuple[Curve, str]]) -> SiteGroup:
    """The group of tied sites, with the options that all of them have."""
    reasons = {name: reason for name, (_, reason) in options.items()}
    free = [name for name, reason in reasons.items() if not reason]
    decided = [name for name, reason in reasons.items() if reason]
    if free and decided:
        raise ValueError(
            f"sites {free[0]!r} and {decided[0]!r} are tied by {pattern!r}, but the second has no choice: "
            f"{reasons[decided[0]]}; constrain both alike, or tie others"
        )
    by_form = {
        name: {(option.format, option.ranks): option for option in curve} for name, (curve, _) in options.items()
    }
    shared = [form for form in next(iter(by_form.values())) if all(form in own for own in by_form.values())]
    if not shared:
        forms = iter(by_form.items())
        first, common = next(forms)
        left = set(common)
        other = next(name for name, own in forms if not (left := left & own.keys()))
        raise ValueError(
            f"sites {first!r} and {other!r} are tied by {pattern!r}, but no format and ranks are allowed for all sites "
            f"up to the second; change their pins, floors or caps, or tie others"
        )
    curves = {name: tuple(own[form] for form in shared) for name, own in by_form.items()}
    return SiteGroup(curves, reasons, pattern)


def _check_shape(first: Site, site: Site, pattern: str) -> None:
    def form(site: Site) -> str:
        return f"{site.kind} {list(site.weight_shape)}" + (f" in {site.groups} groups" if site.groups > 1 else "")

    if form(first) != form(site):
        raise ValueError(
            f"sites {first.name!r} and {site.name!r} cannot be tied by {pattern!r}: one is {form(first)}, the other "
            f"{form(site)}; tie layers of one kind and shape"
        )
