"""Networks for a list of budgets, what each loses, and which one to take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..evaluate import Measure
from ..figures.rows import ENGINES
from .findings import Front, Point

NORMAL = 1.959964  # of a 95 % interval
FIGURES = {"accuracy": "top1"}  # measure -> the figure that holds its value, where its name is another one


def wilson(percent: float, samples: int) -> tuple[float, float]:
    """A 95 % interval of a share in per cent, by E. B. Wilson, Probable inference, 1927.

    Example:
        >>> [round(each, 1) for each in wilson(90.0, 100)]
        [82.6, 94.5]
    """
    p, z2 = percent / 100, NORMAL**2
    middle = (p + z2 / (2 * samples)) / (1 + z2 / samples)
    half = NORMAL / (1 + z2 / samples) * math.sqrt(p * (1 - p) / samples + z2 / (4 * samples**2))
    return 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """A measured front.

    Attributes:
        along: unit of the budgets.
        rows: share of the budget -> figures of the dense and the compressed network.
        judge: what judges them.
        samples: how many they were judged on; None if not known.
        within: points that the recommended network may lose.
        recommended: its share, None if there is none; `reason` says why.
    """

    along: str
    rows: Mapping[float, Mapping[str, Mapping[str, Any]]]
    judge: Measure
    samples: int | None
    within: float
    recommended: float | None = None
    reason: str = ""

    @classmethod
    def of(cls, along: str, rows: Mapping[float, Any], judge: Measure, samples: int | None, within: float) -> Scanned:
        """Recommend the fastest network within the loss: by measured time if it is faster, else by the smallest budget.

        Args:
            along, rows, judge, samples, within: as the attributes.
        """
        found = cls(along=along, rows=rows, judge=judge, samples=samples, within=within)
        fine = [share for share in rows if found.lost(share) <= within]
        if not fine:
            return found
        speeds = {share: ratios[0] for share in fine if (ratios := found.speeds(share))}
        if speeds:
            best = max(speeds, key=lambda share: speeds[share][0])
            ratio, engine = speeds[best]
            why = f"the fastest in {ENGINES[engine]} ({ratio:.2f} times as fast)"
        else:
            best = min(fine)
            why = f"the smallest in {along}"
        reason = f"{why} of those that lose at most {within:g} points of {judge.key.replace('_', ' ')}"
        return cls(**{**vars(found), "recommended": best, "reason": reason})

    @property
    def key(self) -> str:
        """The figure that judges."""
        return FIGURES.get(self.judge.key, self.judge.key)

    def value(self, share: float) -> float:
        """What judges the network of a budget."""
        return float(self.rows[share]["compressed"][self.key])

    @property
    def reference(self) -> float:
        """The value of the dense network."""
        if self.judge.best is not None:
            return self.judge.best
        return float(next(iter(self.rows.values()))["dense"][self.key])

    def lost(self, share: float) -> float:
        """Points that the network of a budget loses."""
        return self.judge.lost(self.value(share), self.reference)

    def interval(self, share: float) -> tuple[float, float] | None:
        """Of the value, if it is a share of samples."""
        return wilson(self.value(share), self.samples) if self.judge.unit == "%" and self.samples else None

    def speeds(self, share: float) -> list[tuple[float, str]]:
        """Speed over the dense network and its engine, the fastest one first, where it is certainly faster."""
        small = self.rows[share]["compressed"]
        found = [(small[f"speedup_{name}"], name) for name in ENGINES if f"speedup_{name}" in small]
        return sorted(((each["median"], name) for each, name in found if (each["low"] or 0.0) > 1), reverse=True)

    def front(self) -> Front:
        """As a picture shows it."""
        points = []
        for share, row in self.rows.items():
            unit = self.along if self.along in row["dense"] else "macs"
            low, high = self.interval(share) or (None, None)
            points.append(
                Point(
                    label=f"{share:.0%}",
                    share=row["compressed"][unit] / row["dense"][unit],
                    value=self.value(share),
                    low=low,
                    high=high,
                    chosen=share == self.recommended,
                )
            )
        title = self.judge.title + (f", {self.judge.unit}" if self.judge.unit else "")
        return Front(
            unit=self.along, title=title, points=tuple(points), reference=self.reference, higher=self.judge.higher
        )

    def document(self) -> dict[str, Any]:
        """For files."""
        rows = []
        for share, figures in self.rows.items():
            interval = self.interval(share)
            rows.append({"keep": share, "lost": self.lost(share), "interval": interval, **figures})
        return {
            "along": self.along,
            "judge": {"key": self.key, **self.judge.document(), "dense": self.reference},
            "samples": self.samples,
            "within": self.within,
            "recommended": self.recommended,
            "reason": self.reason,
            "rows": rows,
        }
