"""What a report shows, in plain values: it can be gathered from a run, or read from an artifact alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..artifact import Manifest
from ..evaluate import Changes
from ..plan import DENSE, Plan


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One site before and after.

    Attributes:
        name, kind, shape: of the site; the shape is that of its weight, output first.
        before, after: parameters and MACs; MACs of the dense layer are None if only the artifact is known.
        predicted, measured: relative squared error of its output, by the plan and in the running network.
        values: singular values in the plan's metric, descending; `cut` is the rank that is kept of them.
        curve: share of its MACs and predicted error of every option that the planner had.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    format: str = DENSE
    ranks: tuple[int, ...] = ()
    why: str = ""
    before: tuple[int | None, int | None]
    after: tuple[int, int]
    predicted: float | None = None
    measured: float | None = None
    values: tuple[float, ...] = ()
    cut: int | None = None
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def share(self) -> float | None:
        """Share of its MACs that is kept."""
        return self.after[1] / self.before[1] if self.before[1] else None


@dataclass(frozen=True, kw_only=True)
class Point:
    """A network of a front.

    Attributes:
        label: for people.
        share: of the dense network's cost.
        value: what judges it, with an interval if there is one.
        chosen: whether it is the one of the report.
    """

    label: str
    share: float
    value: float
    low: float | None = None
    high: float | None = None
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Front:
    """Networks for a list of budgets; `reference` is the value of the dense network."""

    unit: str
    title: str
    points: tuple[Point, ...]
    reference: float | None = None
    higher: bool = False


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that a report shows.

    Attributes:
        line, run: the command line, and the file that repeats the run; "" if unknown.
        figures: of the networks, as the artifact stores them.
        plan: formats and ranks, and the budget.
        layers: in execution order.
        samples: how many samples errors of layers and changed answers come from.
        front: plans for other budgets.
        changes: of the answers.
        notes: what was said during the run that should not be missed.
        missing: what the report could not find out, and why.
        environment: versions and devices.
        measured: what the figures were measured on.
        provenance: of the artifact.
    """

    name: str
    line: str = ""
    run: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    layers: tuple[Layer, ...] = ()
    samples: int = 0
    front: Front | None = None
    changes: Changes | None = None
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    measured: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The network and what is left of it."""
        network = self.provenance.get("model", "").rpartition(".")[2] or self.name
        dense, small = (self.figures.get(each, {}).get("macs") for each in ("dense", "compressed"))
        return (
            f"{network}, compressed to {small / dense:.1%} of its MACs" if dense and small else f"{network}, compressed"
        )

    @classmethod
    def of_artifact(cls, name: str, manifest: Manifest, stored: int) -> Findings:
        """What an artifact alone tells; `stored` are the bytes of its files."""
        shapes = {each: (chain.kind, chain.weight_shape) for chain in manifest.structure for each in chain.names}
        rows = () if manifest.plan is None else manifest.plan.rows
        layers = []
        for row in rows:
            kind, shape = shapes.get(row.site, ("", ()))
            whole = (row.params, row.macs) if row.format == DENSE else (None, None)
            layers.append(
                Layer(
                    name=row.site,
                    kind=kind,
                    shape=tuple(shape),
                    format=row.format,
                    ranks=row.ranks,
                    why=row.why,
                    before=whole,
                    after=(row.params, row.macs),
                    predicted=row.error,
                )
            )
        figures = {**manifest.figures, "compressed": {**manifest.figures.get("compressed", {}), "bytes": stored}}
        return cls(
            name=name,
            figures=figures,
            plan=manifest.plan,
            layers=tuple(layers),
            provenance=manifest.provenance,
        )
