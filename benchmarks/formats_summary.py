"""Requirements for our fits, each with the measured figure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.common import Row
from benchmarks.formats_versus import OUR_SWEEPS, REFERENCE_SWEEPS

# How many times as fast the canonical polyadic forms must be, on which planted kernel; by how many per cent Tucker-2
# may be worse.
FASTER, PLANTED, WORSE = 5.0, "512x512x3x3", 0.1
COLUMNS = ("requirement", "rows", "missed", "measured", "worst", "met")


def summary(tables: Mapping[str, Sequence[Row]]) -> list[Row]:
    """One row for each measured requirement."""
    peers, real = tables.get("peers", ()), [row for row in tables.get("peers", ()) if row["network"] != "synthetic"]
    sigma = [row for row in peers if row["metric"] == "input" and "worse_by" in row]
    found = [
        _at_most("Sigma-error not above tensorly's", sigma, "worse_by", 0.0),
        *(
            _faster(f"{name} at {PLANTED}: {FASTER:g} times as fast as {peer} to its error", rows, FASTER)
            for name, peer, rows in _groups([row for row in tables.get("speed", ()) if row["layer"] == PLANTED])
        ),
        *(
            _faster(f"{name}: not slower than {peer} to its Frobenius error", rows, 1.0)
            for name, peer, rows in _groups([row for row in peers if row["metric"] == "weight"], real)
        ),
        _at_most(
            f"Tucker-2 in {OUR_SWEEPS} sweeps: at most {WORSE:g} % above {REFERENCE_SWEEPS} sweeps of the reference",
            tables.get("reference", ()),
            "worse_by",
            WORSE,
        ),
        _at_most("not above plain ALS, best of three starts", tables.get("plain", ()), "worse_by", 0.01),
        _none_missed("planted weights are recovered", tables.get("planted", ())),
    ]
    return [row for row in found if row["rows"]]


def _groups(rows: Sequence[Row], real: Sequence[Row] | None = None) -> list[tuple[str, str, list[Row]]]:
    """Rows of each format with the name of its peer; those of `parafac`, with sweeps to choose, of real layers only."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if real is None or row["peer"] != "parafac" or row in real:
            groups.setdefault((row["format"], row["peer"]), []).append(row)
    return [(name, peer, found) for (name, peer), found in groups.items()]


def _at_most(requirement: str, rows: Sequence[Row], key: str, limit: float) -> Row:
    if not rows:
        return {"requirement": requirement, "rows": 0}
    worst = max(rows, key=lambda row: row[key])
    measured = f"worst {worst[key]:+.3f} %"
    return _row(requirement, rows, sum(row[key] > limit for row in rows), measured, worst)


def _none_missed(requirement: str, rows: Sequence[Row]) -> Row:
    if not rows:
        return {"requirement": requirement, "rows": 0}
    worst = max(rows, key=lambda row: row["missed"])
    measured = f"worst {worst['recovered']}"
    return _row(requirement, rows, sum(row["missed"] > 0 for row in rows), measured, worst)


def _faster(requirement: str, rows: Sequence[Row], limit: float) -> Row:
    """A row that never reached the error counts as speed 0."""
    speeds = [row.get("equal_speedup", 0.0) for row in rows]
    worst = min(rows, key=lambda row: row.get("equal_speedup", 0.0))
    measured = f"{min(speeds):.2f}x to {max(speeds):.2f}x, median {statistics.median(speeds):.2f}x"
    return _row(requirement, rows, sum(speed < limit for speed in speeds), measured, worst)


def _row(requirement: str, rows: Sequence[Row], missed: int, measured: str, worst: Row) -> Row:
    where = " ".join(str(worst[key]) for key in ("layer", "format", "ranks") if key in worst)
    met = "no" if missed else "yes"
    return {
        "requirement": requirement,
        "rows": len(rows),
        "missed": missed,
        "measured": measured,
        "worst": where,
        "met": met,
    }
