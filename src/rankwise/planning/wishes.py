"""The keyword arguments of `choose`, read into one value and checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict

from torch import nn

from ..formats import Format, SomeFormats, get_format, get_formats, is_registered
from ..latency import AT_HAND, Engine, at_hand, get_engine
from ..layers.kinds import site_kind
from ..metrics import METRICS, FitMetric, get_metric
from ..network.patterns import matching, near
from ..plan import DENSE, Curve, Plan
from ..ranks import FreeRule, Rule, get_floor, get_rule
from ..ranks.budgeted import Knapsack
from ..running.guards import unwrap
from ..surgery.unfusing import layers_to_come
from .budgets import check_keep, check_units, is_measured
from .constraints import Constraints, Pin, parse_pin
from .prices import NEEDS_EXAMPLE
from .profile import check_step
from .request import Request
from .units import UNITS, Macs

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..plan import Done

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


class Wishes(TypedDict, total=False):
    """The keyword arguments of `choose`, which describes them."""

    keep: Mapping[str, float | str] | None
    rule: str | Rule
    floor_rule: str | Rule | None
    evaluate: Callable[[Plan], float] | None
    target_drop: float | None
    drop: Callable[[Plan], float] | None
    minimise: str
    formats: SomeFormats | None
    metric: str | FitMetric
    shrink: float
    include: str | Sequence[str]
    ignore: str | Sequence[str]
    pin: Mapping[str, Pin] | None
    floor: Mapping[str, float] | None
    cap: Mapping[str, float] | None
    tie: str | Sequence[str]
    uniform: bool
    round_to: int | str | None
    curves: Mapping[str, Curve] | None
    done: Done[Curve] | None
    refine: bool
    example: Any
    engine: str | Engine | None
    threads: int
    progress: Progress | None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments of `choose` as one value: objects for names, defaults filled in, constraints put together."""

    keep: Mapping[str, float] | None = None
    rule: Rule = field(default_factory=Knapsack)
    floor_rule: FreeRule | None = None
    evaluate: Callable[[Plan], float] | None = None
    target_drop: float | None = None
    drop: Callable[[Plan], float] | None = None
    minimise: str = Macs.name
    formats: SomeFormats | None = None
    metric: FitMetric = METRICS["input"]
    shrink: float = 0.0
    constraints: Constraints = field(default_factory=Constraints)
    round_to: int | str | None = None
    curves: Mapping[str, Curve] | None = None
    done: Done[Curve] | None = None
    refine: bool = True
    example: Any = None
    engine: str | Engine | None = None
    threads: int = 1
    progress: Progress | None = None

    @classmethod
    def of(cls, **wishes: Unpack[Wishes]) -> Asked:
        """Read keyword arguments of `choose`.

        Raises:
            TypeError: for an argument that does not exist, with those that do.
            ValueError: for an unknown rule, format, metric or unit, or an invalid value.

        Example:
            >>> Asked.of(rule="energy:share=0.99", ignore="head").constraints.ignore
            'head'
        """
        known = Wishes.__annotations__
        if unknown := sorted(wishes.keys() - known.keys()):
            raise TypeError(f"there is no argument {unknown[0]!r}; the arguments are {', '.join(known)}")
        given: dict[str, Any] = dict(wishes)
        asked = {each.name: given.pop(each.name) for each in fields(Constraints) if each.name in given}
        constraints = Constraints(**{name: value for name, value in asked.items() if value is not None})
        readers: dict[str, Callable[[Any], Any]] = {
            "rule": get_rule,
            "floor_rule": get_floor,
            "keep": lambda keep: None if keep is None else check_keep(keep),
            "metric": get_metric,
        }
        if constraints.uniform:  # an added bias is none of the family's
            given.setdefault("metric", "without_bias")
        for name in readers.keys() & given.keys():
            given[name] = readers[name](given[name])
        wished = cls(**given, constraints=constraints)
        if wished.minimise not in UNITS:
            raise ValueError(f"minimise is {wished.minimise!r}; it is one of {', '.join(UNITS)}")
        if wished.round_to is not None:
            check_step(wished.round_to)
        formats = wished.known_formats
        for pin in constraints.pin.values():
            if (format := parse_pin(pin)[0]) != DENSE:
                get_format(format, formats)
        return wished

    @property
    def known_formats(self) -> dict[str, Format]:
        """The formats that are asked for, by name."""
        return {**get_formats(self.formats or ()), **self.constraints.pinned_formats}

    @property
    def request(self) -> Request:
        """What is asked of one plan."""
        return Request(rule=self.rule, keep=self.keep, floor=self.floor_rule)

    @property
    def needs_gradients(self) -> bool:
        """Whether the statistics must hold gradients."""
        return self.metric.needs_gradients or self.rule.needs_gradients

    @property
    def gradients(self) -> bool | str:
        """The argument `gradients` of `collect` that gives what is needed."""
        if self.metric.needs_weight_gradients or self.rule.needs_loss:
            return "weights"
        return self.needs_gradients

    @property
    def needs_times(self) -> bool:
        """Whether an engine has to measure a budget."""
        return is_measured(self.keep) or (self.target_drop is not None and is_measured({self.minimise: 1.0}))

    @property
    def is_timed(self) -> bool:
        """Whether an engine shall measure the network: for a budget, or because it is named."""
        return self.needs_times or self.engine not in (None, AT_HAND)

    @property
    def measures(self) -> bool:
        """As `is_timed`, or the engine at hand shall measure it if it can."""
        return self.needs_times or self.engine is not None

    def runs_in(self, model: nn.Module) -> Engine:
        """The engine that is named, `latency.at_hand` for "auto", torch for none; errors as for `get_engine`."""
        return self.engines(model)[0]

    def engines(self, model: nn.Module) -> list[Engine]:
        """The engine of `runs_in`, and for "auto" torch after it, which runs every network."""
        named = ["torch" if self.engine is None else self.engine]
        if self.engine == AT_HAND:
            named = list(dict.fromkeys([at_hand(unwrap(model)), "torch"]))
        return [get_engine(name, self.threads) for name in named]

    def check(self, model: nn.Module) -> None:
        """Refuse whatever is wrong by the network's structure alone, without running it; errors as for `choose`."""
        check_wishes(model, self)
        if (self.target_drop is None) != (self.drop is None):
            raise ValueError("target_drop and drop go together: how much may be lost, and what measures it")
        if self.target_drop is None and self.minimise != Macs.name:
            raise ValueError(
                f"minimise={self.minimise!r} has no effect without target_drop; a budget is "
                f"keep={{{self.minimise!r}: 0.5}}"
            )
        keep = self.keep if self.drop is None else {self.minimise: 1.0, **(self.keep or {})}
        Request(rule=self.rule, keep=keep).check(self.evaluate)
        if self.needs_times and self.example is None:
            raise ValueError(NEEDS_EXAMPLE)
        unknown = [name for name in self.known_formats if not is_registered(name)]
        if self.example is not None and unknown:
            raise ValueError(
                f"format {unknown[0]!r} cannot be timed: layers are measured by the names of their formats; call "
                f"rankwise.formats.register first"
            )
        self.runs_in(model)


def check_wishes(model: nn.Module, asked: Asked) -> None:
    """Refuse patterns that match no layer of a kind that can be factorised, and budgets meant in per cent.

    Example:
        >>> check_wishes(nn.Sequential(nn.Linear(2, 2)), Asked.of(ignore="head"))
        Traceback (most recent call last):
        ValueError: pattern 'head' matches no site; near names are: 0
    """
    model = unwrap(model)
    if asked.keep is not None:
        check_units(model, asked.keep)
    layers = [name for name, part in model.named_modules(remove_duplicate=False) if site_kind(part)]
    layers += layers_to_come(model)
    for pattern in asked.constraints.patterns:
        if layers and not matching(pattern, layers):
            raise ValueError(f"pattern '{pattern}' matches no site; near names are: {near(pattern, layers)}")
