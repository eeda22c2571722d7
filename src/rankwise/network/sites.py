"""The layers of a model that can be factorised, and the costs of the dense model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from ..files import built
from ..running.guards import unwrap
from .patterns import matching, near
from .site import Site


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
