"""A plan: the format and ranks of every site, and why; a YAML file that a person can read, edit and re-apply."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..drawing import WHITE, Bar, bars_figure
from ..files import digest, is_finite, parse_yaml, read_text, replacing, shown, told
from ..files.tables import html_table, text_table
from ..metrics import FitMetric, get_metric

if TYPE_CHECKING:
    from ..network.site import Site
    from ..network.sites import Sites

# First line of a plan's file, a YAML comment: its digest shows whether a person edited the file.
_WRITTEN = "# written by Rankwise, what follows has sha256 "
DENSE = "dense"
TITLES = {"macs": "MACs"}  # of counts whose name is not their title
_RIGHT = (2, 3, 4, 5, 6)
LARGEST = 8 << 20  # bytes of a file; a thousand layers take 200 kB

logger = logging.getLogger("rankwise")


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One site of a plan.

    Attributes:
        format: name of the format, or "dense".
        ranks: ranks of the format, () for a dense site.
        params: parameters of the built layer, with its bias.
        macs: multiply-accumulates of the built layer for the example input.
        error: predicted relative squared error of the site's output; 0 for a dense site, None without a prediction.
    """

    site: str
    format: str = DENSE
    ranks: tuple[int, ...] = ()
    params: int
    macs: int
    error: float | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class PlannedLatency:
    """Milliseconds of one forward on an engine.

    Attributes:
        engine: runs the network, such as "onnxruntime".
        dense: the dense network, measured.
        predicted: the planned network, from its layers.
        measured: the planned network as a whole, beside the dense one; a roofline computes all figures.
        low, high: 95 % confidence interval of `measured`, from rounds in which both networks ran.
        blind: the prediction from layers alone, before measured networks of this very model corrected it.
        corrections: how many networks corrected it.

    Raises:
        ValueError: for a figure that is not above 0; only predictions may be negative.
    """

    engine: str
    device: str
    threads: int
    dense: float
    predicted: float
    measured: float
    low: float | None = None
    high: float | None = None
    blind: float | None = None
    corrections: int = 0

    def __post_init__(self) -> None:
        for name in ("engine", "device"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"plan: the latency's {name} must be a name, not {shown(getattr(self, name))}")
        for name in ("predicted", "blind", "low", "high", "corrections"):  # negative if layers alone promise too much
            value = getattr(self, name)
            if not is_finite(value) and (name in ("predicted", "corrections") or value is not None):
                raise ValueError(f"plan: the latency's {name} must be a number, not {shown(value)}")
        for name in ("threads", "dense", "measured"):
            if not is_finite(getattr(self, name)) or not getattr(self, name) > 0:
                raise ValueError(
                    f"plan: the latency's {name} must be a number above 0, not {shown(getattr(self, name))}"
                )

    @property
    def share(self) -> float:
        """Measured time over that of the dense network."""
        return self.measured / self.dense

    def __str__(self) -> str:
        computed = self.engine.startswith("roofline")
        where = f"roofline of {self.device}" if computed else f"{self.engine} {self.threads} thread"
        where += "s" * (self.threads > 1 and not computed)
        if self.measured == self.dense:
            return f"dense {self.dense:.3g} ms, which the planned network takes too: no speed is claimed, {where}"
        took = f"{'computed' if computed else 'measured'} {self.measured:.3g} ms"
        if self.low is not None and self.high is not None and self.low < self.high:
            took += f" ({self.low:.3g} to {self.high:.3g}{', within noise' * (self.low <= self.dense <= self.high)})"
        return f"{self._predicted()}, {took}, dense {self.dense:.3g} ms, {where}"

    def _predicted(self) -> str:
        """The predictions, and how far they were from the measurement."""
        if self.blind is None:
            return f"predicted {self.predicted:.3g} ms"
        if not self.corrections:
            return f"predicted {self.blind:.3g} ms ({self.blind / self.measured - 1:+.1%}) without having measured it"
        times = "one correction" if self.corrections == 1 else f"{self.corrections} corrections"
        return (
            f"predicted {self.predicted:.3g} ms ({self.predicted / self.measured - 1:+.1%}) after {times} on this very "
            f"network, blindly {self.blind:.3g} ms ({self.blind / self.measured - 1:+.1%})"
        )


@dataclass(frozen=True, kw_only=True)
class Plan(Mapping[str, PlanRow]):
    """Format and ranks for every site of a network, and the budget they meet.

    Attributes:
        rows: one row per site, in execution order.
        keep: the budget as the user gave it, for instance {"macs": 0.5}.
        dense: counts of the dense network, for instance {"params": ..., "macs": ...}; "latency" in microseconds.
        planned: the same counts of the compressed network.
        metric: "input", "diagonal", "fisher" or "weight".
        shrink: share of the weight metric, from 0 to 1; one-shot fits use it.
        fingerprint: structure of the network that the plan was made for.
        latency: predicted and measured, for a latency budget.

    Raises:
        ValueError: for an unknown metric, a share outside 0 to 1, or a site with more than one row.
    """

    rows: tuple[PlanRow, ...]
    keep: dict[str, float] = field(default_factory=dict)
    dense: dict[str, float] = field(default_factory=dict)
    planned: dict[str, float] = field(default_factory=dict)
    metric: str = "input"
    shrink: float = 0.0
    rule: str = "knapsack"
    fingerprint: str = ""
    latency: PlannedLatency | None = None

    def __post_init__(self) -> None:
        get_metric(self.metric, "plan: ")
        if not is_finite(self.shrink) or not 0 <= self.shrink <= 1:
            raise ValueError(f"plan: shrink must be a number from 0 to 1, not {shown(self.shrink)}")
        if twice := [name for name, count in Counter(row.site for row in self.rows).items() if count > 1]:
            raise ValueError(f"plan: site {shown(twice[0])} has more than one row; keep one")

    def __getitem__(self, site: str) -> PlanRow:
        for row in self.rows:
            if row.site == site:
                return row
        raise KeyError(site)

    def __iter__(self) -> Iterator[str]:
        return (row.site for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        titles, rows = self._table()
        return text_table(titles, rows, right=_RIGHT)

    def _repr_html_(self) -> str:
        """A table, in notebooks."""
        titles, rows = self._table()
        return html_table(titles, rows, right=_RIGHT)

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """A row for every site, and one for every count of the whole network."""
        rows = []
        for row in self.rows:
            error = "" if row.format == DENSE or row.error is None else f"{row.error:.2%}"
            ranks = ",".join(map(str, row.ranks))
            rows.append([row.site, row.format, ranks, f"{row.params:,}", f"{row.macs:,}", "", error, row.why])
        for name, dense in self.dense.items():
            share = f"{self.planned[name] / dense:.1%}" if dense and name in self.planned else ""
            rows.append(
                [f"all {TITLES.get(name, name)}", "", "", "", f"{self.planned.get(name, dense):,.0f}", share, "", ""]
            )
        return ["site", "format", "ranks", "params", "MACs", "of dense", "error", "why"], rows

    def plot(self) -> Any:
        """The predicted error of every factorised site as bars, a figure of matplotlib.

        Raises:
            ImportError: without matplotlib, with the command that installs it.
        """
        bars = [Bar(row.site, 100 * (row.error or 0.0)) for row in self.factorised]
        if not bars:
            raise ValueError("the plan factorises nothing, so there is nothing to draw")
        return bars_figure(bars, "% error", colours=WHITE)

    @property
    def factorised(self) -> tuple[PlanRow, ...]:
        """The rows that are not dense."""
        return tuple(row for row in self.rows if row.format != DENSE)

    @property
    def fit_metric(self) -> FitMetric:
        """The metric as an object."""
        return get_metric(self.metric)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries."""
        plain = asdict(self)
        plain["rows"] = [{**row, "ranks": list(row["ranks"])} for row in plain["rows"]]
        return plain

    @classmethod
    def from_dict(cls, plain: object) -> Plan:
        """A plan from plain values.

        Raises:
            ValueError: naming a field that is missing, unknown or of a wrong type, or an unknown metric.
        """
        values = _fields_of(cls, plain, "plan", required={"rows"})
        if not isinstance(values["rows"], list):
            raise ValueError(f"plan: rows must be a list, not {type(values['rows']).__name__}")
        rows = tuple(_row(row, index) for index, row in enumerate(values.pop("rows")))
        for name in ("keep", "dense", "planned"):
            if not isinstance(values.get(name, {}), dict):
                raise ValueError(f"plan: {name} must be a mapping, not {shown(values[name])}")
            if not all(isinstance(key, str) and is_finite(value) for key, value in values.get(name, {}).items()):
                raise ValueError(f"plan: {name} must map names to finite numbers, not {shown(values[name])}")
        for name in ("metric", "rule", "fingerprint"):
            if not isinstance(values.get(name, ""), str):
                raise ValueError(f"plan: {name} must be a string, not {shown(values[name])}")
        if values.get("latency") is not None:
            names = {item.name for item in fields(PlannedLatency) if item.default is MISSING}
            values["latency"] = PlannedLatency(**_fields_of(PlannedLatency, values["latency"], "plan latency", names))
        return cls(rows=rows, **values)

    def to_yaml(self) -> str:
        """YAML, one flow-style line per site."""
        plain = self.to_dict()
        rows = plain.pop("rows")
        head = yaml.safe_dump(plain, sort_keys=False, allow_unicode=False)
        lines = (
            "- "
            + yaml.safe_dump(row, sort_keys=False, allow_unicode=False, default_flow_style=True, width=10**6).strip()
            for row in rows
        )
        return head + ("rows:\n" + "".join(line + "\n" for line in lines) if rows else "rows: []\n")

    @classmethod
    def from_yaml(cls, text: str) -> Plan:
        """A plan from its YAML.

        Raises:
            ValueError: if the text is not YAML, or not a plan.
        """
        try:
            plain = parse_yaml(text)
        except ValueError as error:
            raise ValueError(f"the plan is not valid YAML: {error}") from error
        return cls.from_dict(plain)

    def save(self, path: str | Path) -> None:
        """Write the YAML file, and its folder if needed; an older file is replaced as a whole.

        Raises:
            OSError: naming the file, if it cannot be written.
        """
        text = self.to_yaml()
        with replacing(Path(path)) as new:
            new.write_text(f"{_WRITTEN}{digest(text)}\n{text}", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a YAML file; a note says if it was edited after Rankwise had written it.

        Raises:
            ValueError: naming the file, if it cannot be read or holds no plan.
        """
        with told(f"cannot read the plan {str(path)!r}"):
            text = read_text(Path(path), LARGEST)
        first, _, rest = text.partition("\n")
        if first.startswith(_WRITTEN) and first != f"{_WRITTEN}{digest(rest)}":
            logger.info("%s was edited after Rankwise had written it", path)
        with told(path):
            return cls.from_yaml(text)


def site_of(row: PlanRow, sites: Sites) -> Site:
    """The site that a row is about.

    Raises:
        ValueError: if the row names no site (with near names), an alias of one, or a pattern.
    """
    if row.site in sites:
        return sites[row.site]
    for site in sites.values():
        if row.site in site.aliases:
            raise ValueError(
                f"plan row {row.site!r}: this is an alias of site {site.name!r}, whose row stands for both; "
                f"name that one"
            )
    names = ", ".join(repr(site.name) for site in sites.select([row.site]))  # raises if nothing matches
    raise ValueError(f"plan row {row.site!r}: this is a pattern, a row is for one site; name each by a row: {names}")


def _fields_of(cls: type, plain: object, where: str, required: set[str]) -> dict[str, Any]:
    if not isinstance(plain, dict):
        raise ValueError(f"{where}: a mapping is needed, not {type(plain).__name__}")
    known = {item.name for item in fields(cls)}
    if unknown := sorted(str(key) for key in plain.keys() - known):
        raise ValueError(f"{where}: unknown field {shown(unknown[0])}; the fields are {', '.join(sorted(known))}")
    if missing := sorted(required - plain.keys()):
        raise ValueError(f"{where}: the field {missing[0]!r} is missing")
    return dict(plain)


def _row(plain: object, index: int) -> PlanRow:
    values = _fields_of(PlanRow, plain, f"plan row {index}", required={"site"})
    where = f"plan row {index} (site {shown(values['site'])})"
    ranks = values.get("ranks", ())
    if not isinstance(ranks, (list, tuple)) or not all(isinstance(r, int) and not isinstance(r, bool) for r in ranks):
        raise ValueError(f"{where}: ranks must be a list of integers, not {shown(ranks)}")
    for name, kind in (("site", str), ("format", str), ("why", str), ("params", int), ("macs", int)):
        if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
            raise ValueError(f"{where}: {name} must be {kind.__name__}, not {shown(values[name])}")
    if values.get("error") is not None and not is_finite(values["error"]):
        raise ValueError(f"{where}: error must be a number, not {shown(values['error'])}")
    if values.get("format", DENSE) == DENSE and ranks:
        raise ValueError(
            f"{where}: a dense site has no ranks, but {shown(list(ranks))} stand there; name a format or clear them"
        )
    # An edited row may leave out the counts: they follow from the ranks when the plan is applied.
    return PlanRow(**{"params": 0, "macs": 0, **values, "ranks": tuple(ranks)})
