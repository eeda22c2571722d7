"""The layers of a model that can be factorised, and the costs of the dense model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from ..drawing import WHITE, Bar, bars_figure
from ..files import built
from ..files.tables import html_table, text_table
from ..running.guards import unwrap
from .patterns import matching, near
from .repeats import folded
from .site import Site

_RIGHT = (3, 4, 5, 6)
LARGEST = 30  # layers of a picture


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sites(Mapping[str, Site]):
    """The sites of a model by name, in the order of their first call, and the counts of the whole model.

    Attributes:
        total_params: all parameters of the model, tied ones once.
        other_macs: layers and parameters counted outside the sites -> MACs.
        not_counted: operators that are not counted -> why.
        never_called: layers that the forward never called.
        fingerprint: of the structure, see `fingerprint`.
        example: the batch that the network was called with; not stored.
    """

    by_name: Mapping[str, Site]
    total_params: int
    other_macs: Mapping[str, int]
    not_counted: Mapping[str, str]
    never_called: tuple[str, ...]
    fingerprint: str
    example: Any = None

    @property
    def joint(self) -> tuple[str, ...]:
        """Names of the kinds of which layers that belong together are one site; () if they are found one by one."""
        return tuple(sorted({site.kind for site in self.by_name.values() if site.feeders}))

    @property
    def total_macs(self) -> int:
        """MACs of the whole model for the example input: all sites, dense ones included, and `other_macs`."""
        return sum(site.macs for site in self.by_name.values()) + sum(self.other_macs.values())

    def __getitem__(self, name: str) -> Site:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def __repr__(self) -> str:
        free = sum(site.stays_dense is None for site in self.values())
        return f"Sites({free} of {len(self)} to factorise, {self.total_params:,} params, {self.total_macs:,} MACs)"

    def __str__(self) -> str:
        titles, rows = self._table()
        return text_table(titles, rows, right=_RIGHT)

    def _repr_html_(self) -> str:
        """A table, in notebooks."""
        titles, rows = self._table()
        return html_table(titles, rows, right=_RIGHT)

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """A row for every layer; repeated ones are folded into one."""
        signs = [(name, (site.kind, site.weight_shape, site.macs, site.stays_dense)) for name, site in self.items()]
        rows = []
        for group in folded(signs):
            site, count = self[group.names[0]], len(group)
            share = f"{count * site.macs / self.total_macs:.1%}" if self.total_macs else ""
            shape = "x".join(map(str, site.weight_shape))
            amounts = [f"{count}", f"{count * site.params:,}", f"{count * site.macs:,}", share]
            rows.append([group.title, site.kind, shape, *amounts, site.stays_dense or ""])
        total = ["whole network", "", "", "", f"{self.total_params:,}", f"{self.total_macs:,}", "100.0%", ""]
        titles = ["layer", "kind", "weight", "layers", "params", "MACs", "of all MACs", "stays dense"]
        return titles, [*rows, total]

    def plot(self) -> Any:
        """The layers with the most MACs as bars, a figure of matplotlib.

        Raises:
            ImportError: without matplotlib, with the command that installs it.
        """
        largest = sorted(self.values(), key=lambda site: -site.macs)[:LARGEST]
        bars = [Bar(site.name, site.macs / 1e6, dense=bool(site.stays_dense)) for site in largest]
        return bars_figure(bars, "million MACs", colours=WHITE)

    def select(self, patterns: str | Iterable[str]) -> list[Site]:
        """The sites that any pattern matches, in execution order, each once.

        Args:
            patterns: names or aliases; else globs ("encoder.*.fc1"), or full-match regular expressions
                ("re:.*fc[12]").

        Raises:
            ValueError: a pattern matches nothing (near names are listed), or is not a valid regular expression.
        """
        owners = {alias: site.name for site in self.values() for alias in site.names}
        chosen: set[str] = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matched = matching(pattern, [*owners, *self.never_called])
            found = {owners[name] for name in matched if name in owners}
            if not found:
                raise ValueError(self._no_match(pattern, list(owners), matched))
            chosen |= found
        return [site for name, site in self.items() if name in chosen]

    def included(self, patterns: str | Iterable[str]) -> list[Site]:
        """The sites that patterns allow to factorise: all matches, but "*" alone leaves out sites with `unless_named`.

        Args:
            patterns: as for `select`; `["*", "lm_head"]` allows all sites and the head of a language model too.

        Raises:
            ValueError: as `select` does.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        named = {site.name for site in self.select(pattern for pattern in patterns if pattern != "*")}
        return [site for site in self.select(patterns) if site.name in named or not site.unless_named]

    def left_dense(self, reasons: Mapping[str, str]) -> Sites:
        """The same sites, some of which must stay dense: name -> why."""
        changed = {name: replace(self[name], dense_because=why) for name, why in reasons.items() if name in self}
        return replace(self, by_name={**self.by_name, **changed})

    def check_structure(self, model: nn.Module) -> None:
        """Raise a ValueError for a model whose structure differs from the one that the sites were found in."""
        if self.fingerprint != fingerprint(model):
            raise ValueError(
                f"the sites or statistics belong to a network of another structure than this {type(model).__name__}; "
                f"find or collect them again for this one"
            )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the example as plain values, to store as JSON."""
        values = asdict(replace(self, example=None))
        del values["example"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sites:
        """The inverse of `to_dict`, also after a round trip through JSON.

        Raises:
            ValueError: naming the field that is missing or of another type.
        """
        return built(cls, values, "sites")

    def _no_match(self, pattern: str, names: list[str], idle: list[str]) -> str:
        if idle:
            return f"pattern '{pattern}' matches only layers that the example input never calls: {', '.join(idle)}"
        if not names:
            return f"pattern '{pattern}' matches no site: the model has none"
        return f"pattern '{pattern}' matches no site; near names are: {near(pattern, names)}"


def fingerprint(model: nn.Module) -> str:
    """A sha256 of the class of every module and the name and shape of every parameter.

    Example:
        >>> fingerprint(nn.Linear(2, 3)) == fingerprint(nn.Linear(2, 3).half())
        True
    """
    model = unwrap(model)
    lines = [f"{name} {type(module).__name__}" for name, module in model.named_modules(remove_duplicate=False)]
    lines += [f"{name} {tuple(p.shape)}" for name, p in model.named_parameters(remove_duplicate=False)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
