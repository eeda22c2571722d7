"""What a rule is given, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ..plan import DENSE, Option, Plan

if TYPE_CHECKING:
    from .spectra import Spectra


class Pick(NamedTuple):
    """The chosen option of a site: its index, and the reason for a person to read."""

    option: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """One site as a rule sees it.

    Attributes:
        options: what the constraints leave, at least one.
        costs: by unit, the cost of every option.
        dense: the dense option, even if a cap forbids it.
        spectra: singular values that each rank of a format cuts off, by the format's name; computed on the first call,
            a ValueError if a format has none.
        importance: Fisher energy of the site: how much the loss would rise if only the mean of its output were left,
            for tied sites their mean; computed on the first call, a ValueError if the statistics hold no gradients.
        predicted: by format and ranks, the loss in nats that second derivatives predict for fits that do not see them;
            {} where no closed form gives it; computed on the first call.
        slopes: of each component of svd, leading ones first, how much the loss changes to first order when it leaves;
            a ValueError if the statistics hold no gradients of a loss on labels.
        kind: kind of the layer, such as "conv2d"; "" if it is not known.
        members: how many tied sites it stands for; counts and errors are sums over them.
        idle: why it stays dense if that is its only option.
    """

    name: str
    options: tuple[Option, ...]
    costs: Mapping[str, Sequence[float]]
    dense: Option
    spectra: Callable[[str], Spectra]
    importance: Callable[[], float]
    predicted: Callable[[], Mapping[tuple[str, tuple[int, ...]], float]] = dict
    slopes: Callable[[], Sequence[float]] = tuple
    kind: str = ""
    members: int = 1
    idle: str = "no format costs less than dense"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What to decide: one option of every site, within all limits.

    `min loss(o)  subject to  sum_i cost_iu(o_i) <= limit_u` for every unit u

    Attributes:
        sites: in execution order.
        limits: by unit, what all sites together may cost; empty without a budget.
        plan: makes a plan from some sites' options, all others dense; for `evaluate`.
        evaluate: returns the loss of a plan, 0 for the dense network; None if plans cannot be tried.
    """

    sites: tuple[Candidates, ...]
    limits: Mapping[str, float]
    plan: Callable[[Mapping[str, Option]], Plan]
    evaluate: Callable[[Plan], float] | None = None

    def fits(self, chosen: Sequence[int]) -> bool:
        """Whether one option of every site meets all limits."""
        return all(
            sum(site.costs[unit][index] for site, index in zip(self.sites, chosen, strict=True)) <= limit
            for unit, limit in self.limits.items()
        )

    def shares(self, site: Candidates) -> list[float]:
        """One price for every option: the sum of its shares of the limits; without limits, its parameters."""
        if not self.limits:
            return [float(option.params) for option in site.options]
        scaled = [(site.costs[unit], max(limit, 1.0)) for unit, limit in self.limits.items()]
        return [sum(cost[index] / limit for cost, limit in scaled) for index in range(len(site.options))]


class Rule(ABC):
    """A way to choose ranks. Rules see options, budgets and spectra; plans that they want to try go to `evaluate`.

    A rule is a frozen dataclass whose fields are its settings, each with a default.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_budget: ClassVar[bool] = True
    needs_evaluate: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    # Whether the gradients must be those of a loss on labels, and of the weights.
    needs_loss: ClassVar[bool] = False
    # Whether plans of language models are judged by `evaluate.regularised_perplexity`.
    regularised: ClassVar[bool] = False
    # Whether it applies only to formats whose ranks cut singular values.
    needs_spectra: ClassVar[bool] = False

    @abstractmethod
    def choose(self, problem: Problem) -> list[Pick]:
        """One pick for every site of the problem, within its limits.

        Raises:
            ValueError: if the rule does not apply to a format, or finds nothing within the limits.
        """

    def __str__(self) -> str:
        """The rule as `rankwise.choose` takes it: its name, and settings that differ from the default."""
        changed = [
            f"{field.name}={str(value).lower() if isinstance(value, bool) else value}"
            for field in fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, field.name)) != field.default
        ]
        return ":".join([self.name, *([",".join(changed)] if changed else [])])


def described(site: Candidates, index: int) -> str:
    """A reason for any rule, which the plan's columns do not hold: what the best cheaper option would cost in error."""
    option, dense = site.options[index], site.dense
    unit, title = ("macs", "MACs") if dense.macs else ("params", "parameters")
    if len(site.options) == 1 and option.format == DENSE:
        return site.idle
    cheaper = [each for each in site.options if getattr(each, unit) < getattr(option, unit)]
    if not cheaper:
        return "the cheapest option"
    best = min(cheaper, key=lambda each: (each.error, getattr(each, unit)))
    how = f"{best.format} {','.join(map(str, best.ranks))}".strip()
    share = getattr(best, unit) / getattr(dense, unit)
    told = f"{how} at {share:.0%} of its {title} would have error {best.error:.2%}"
    return f"dense: {told}" if option.format == DENSE else f"cheaper: {told}"
