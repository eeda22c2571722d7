"""Plans for measured time: predicted and measured, compared with plans for MACs, and for a described device.

    python -m benchmarks.latency [--parts networks accuracy roofline] [--networks resnet18 ...] [--engines onnxruntime]
                                 [--quick] [--json FILE]

`networks`: random networks at half of their time, which MobileNetV2 cannot reach; ResNet-50 at half of its MACs.
`accuracy`: trained networks, planned for MACs and for latency; measured time at equal agreement with the dense network.
`roofline`: this CPU described by four numbers, and how far that description is from measurements.

One thread, batch 1. Every final figure is measured on the factorised network beside the dense one, after planning and
independently of the plan. What got worse is listed at the end.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.latency_networks import NETWORKS
from benchmarks.tasks import TASKS
from rankwise.latency import Engine, get_engine
from rankwise.latency.roofline import RooflineEngine
from rankwise.latency.roofline_fit import measured_device
from rankwise.latency.table import Table
from rankwise.plan import dense_option

COLUMNS = (
    *("network", "what", "engine", "dense_ms", "blind_ms", "predicted_ms", "measured_ms", "ratio", "speedup", "off"),
    *("macs_ratio", "of_macs", "top1", "agreement", "against_macs", "least", "layers", "layer_error", "share_error"),
    "seconds",
)
# Ranks that fill the vectors of the engine.
VECTOR = 16
PARTS = ("networks", "accuracy", "roofline")
TRAINED = ("resnet20", "resnet32")
# What the figures are held against: time at half, how far a prediction may be off, speed-up per saved MAC.
MOST_RATIO, MOST_OFF, LEAST_OF_MACS = 0.55, 0.10, 0.8
SHARES = {"macs": (0.7, 0.5, 0.35, 0.25), "latency": (0.85, 0.75, 0.65, 0.55)}


def planned(
    name: str, what: str, engine: str, keep: Mapping[str, float], rounds: int, planned_for: Engine | None = None
) -> Row:
    """A plan of a random network, and the measured time of its network; `least` if there is no plan."""
    model, example = NETWORKS[name]()
    sites = rw.find(model, example)
    row: Row = {"network": name, "what": what, "engine": engine}
    where: dict[str, Any] = {"engine": planned_for or engine, "example": example} if "latency" in keep else {}
    begin = time.perf_counter()
    try:
        plan = rw.choose(model, sites, keep=keep, metric="weight", **where)
    except ValueError as error:
        print(f"{name}, {what}: {error}")
        if not (shares := re.findall(r"\((0\.\d+)\)", str(error))):
            raise
        return {**row, "least": float(shares[-1]), "seconds": time.perf_counter() - begin}
    row["seconds"] = time.perf_counter() - begin
    small = rw.factorise(model, plan, sites)
    times = rw.evaluate.latency({"dense": model, "small": small}, example, engine=engine, threads=1, rounds=rounds)
    ratio = times["small"].median / times["dense"].median
    row |= {"dense_ms": 1e3 * times["dense"].median, "measured_ms": 1e3 * times["small"].median}
    row |= {"ratio": ratio, "speedup": 1 / ratio, "macs_ratio": plan.planned["macs"] / plan.dense["macs"]}
    row["of_macs"] = row["speedup"] * row["macs_ratio"]
    if plan.latency is not None:
        row["predicted_ms"], row["blind_ms"] = plan.latency.predicted, plan.latency.blind
        row["off"] = plan.latency.predicted / plan.latency.dense / ratio - 1
    _show(row)
    return row


def plans_of_networks(names: Sequence[str], engines: Sequence[str], rounds: int) -> list[Row]:
    """Half of the time; half of the MACs of ResNet-50."""
    rows = []
    for engine in engines:
        for name in names:
            rows.append(planned(name, "latency 0.5", engine, {"latency": 0.5}, rounds))
            if name == "resnet50":
                for what, keep in (
                    ("macs 0.5", {"macs": 0.5}),
                    ("macs 0.5, what is faster", {"macs": 0.5, "latency": 1.0}),
                    ("macs 0.5, latency 0.6", {"macs": 0.5, "latency": 0.6}),
                ):
                    rows.append(planned(name, what, engine, keep, rounds))
    return rows


def equal_accuracy(names: Sequence[str], engines: Sequence[str], rounds: int, quick: bool) -> list[Row]:
    """Plans for MACs and for latency of trained networks: measured time at equal agreement."""
    rows: list[Row] = []
    for name in names:
        task = TASKS[name](networks())
        batches = task.batches()[:4] if quick else task.batches()
        further = task.further[:1000] if quick else task.further
        model, example = task.model, batches[0][:1]
        stats = rw.collect(model, batches)
        dense = task.answers(model, further)
        for engine in engines:
            built: dict[str, nn.Module] = {"dense": model}
            found: dict[str, Row] = {}
            predicted: dict[str, float] = {}
            for unit, shares in SHARES.items():
                curves = rw.profile(model, stats, round_to=VECTOR if unit == "latency" else "auto")
                where: dict[str, Any] = {"engine": engine, "example": example} if unit == "latency" else {}
                for share in shares[1:3] if quick else shares:
                    what, row = f"{unit} {share:g}", {"network": name, "engine": engine}
                    try:
                        plan = rw.choose(model, stats, keep={unit: share}, curves=curves, **where)
                    except ValueError as error:
                        print(f"{name}, {what}: {error}")
                        continue
                    built[what] = rw.factorise(model, plan, stats, data=batches)
                    row |= {"what": what, "macs_ratio": plan.planned["macs"] / plan.dense["macs"]}
                    row["agreement"] = 100 * float((task.answers(built[what], further) == dense).double().mean())
                    right = task.answers(built[what], task.images) == task.labels
                    row["top1"] = 100 * float(right.double().mean())
                    if plan.latency is not None:
                        row["predicted_ms"], row["blind_ms"] = plan.latency.predicted, plan.latency.blind
                        predicted[what] = plan.latency.predicted / plan.latency.dense
                    found[what] = row
                    _show(row)
            times = rw.evaluate.latency(built, example, engine=engine, threads=1, rounds=3 * rounds)
            for what, row in found.items():
                row |= {"dense_ms": 1e3 * times["dense"].median, "measured_ms": 1e3 * times[what].median}
                row["ratio"] = times[what].median / times["dense"].median
                row["speedup"] = 1 / row["ratio"]
                if what in predicted:
                    row["off"] = predicted[what] / row["ratio"] - 1
            by_macs = {row["agreement"]: row["ratio"] for what, row in found.items() if what.startswith("macs")}
            for what, row in found.items():
                if what.startswith("latency") and (own := _between(by_macs, row["agreement"])) is not None:
                    row["against_macs"] = row["ratio"] / own
            rows += found.values()
    return rows


def _between(points: Mapping[float, float], at: float) -> float | None:
    """The line through points (x to y) at an x; None beyond them."""
    for low, high in zip(sorted(points), sorted(points)[1:], strict=False):
        if low <= at <= high:
            share = (at - low) / (high - low)
            return (1 - share) * points[low] + share * points[high]
    return None


def described(names: Sequence[str], engines: Sequence[str], rounds: int) -> list[Row]:
    """The roofline of this CPU against measurements: of layers, of whole networks, and of a plan made with it."""
    rows = []
    for engine in engines:
        device = measured_device(get_engine(engine))
        print(f"{device}")
        for name in names:
            model, example = NETWORKS[name]()
            sites = rw.find(model, example)
            curves = rw.profile(model, sites, metric="weight", round_to=VECTOR)
            engines = get_engine(engine), RooflineEngine(device)
            real, paper = (Table(each, model, sites, example, metric="weight") for each in engines)
            real.learn(curves)
            pairs = [(site, option) for site, curve in curves.items() for option in curve if (site, option) in real]
            paper.measure(pairs)
            # What a time is off by, and what the share of an option in its dense layer's time is off by.
            off, unlike = [], []
            for site, option in pairs:
                ratios = [
                    paper.seconds(site, each).median / real.seconds(site, each).median
                    for each in (option, dense_option(sites[site]))
                ]
                off.append(abs(ratios[0] - 1))
                unlike.append(abs(ratios[0] / ratios[1] - 1))
            row: Row = {"network": name, "what": "its layers by the roofline", "engine": engine, "layers": len(pairs)}
            rows.append({**row, "layer_error": median(off), "share_error": median(unlike)})
            _show(rows[-1])
            what = "planned by its roofline, 0.5"
            described = RooflineEngine(device)
            rows.append(planned(name, what, engine, {"latency": 0.5}, rounds, planned_for=described))
    return rows


def complaints(rows: Sequence[Row]) -> list[str]:
    """What is worse than it should be."""
    found = []
    for row in rows:
        where = f"{row['network']}, {row['what']}, {row['engine']}"
        if row["what"] == "latency 0.5" and row.get("ratio", 0) > MOST_RATIO:
            found.append(f"{where}: {row['ratio']:.3f} of the dense time, above {MOST_RATIO}")
        if abs(row.get("off", 0)) > MOST_OFF:
            found.append(f"{where}: the prediction is off by {row['off']:+.0%}")
        if "macs 0.5" in row["what"] and row.get("of_macs", 1) < LEAST_OF_MACS:
            found.append(f"{where}: the speed-up is {row['of_macs']:.2f} of what the MACs say, below {LEAST_OF_MACS}")
        if row.get("against_macs", 0) > 1:
            found.append(f"{where}: {row['against_macs']:.3f} of the time of a plan for MACs at equal agreement")
    return found


def _show(row: Row) -> None:
    texts = (f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items())
    print("  ".join(texts), flush=True)


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--networks", nargs="+", choices=[*NETWORKS, *TRAINED])
    options.add_argument("--engines", nargs="+", default=["onnxruntime"])
    arguments = options.parse_args()
    arguments.threads = 1
    start(arguments)
    quick, rounds = arguments.quick, 10 if arguments.quick else 30
    chosen = arguments.networks or (["resnet18", "resnet20"] if quick else [*NETWORKS, *TRAINED])
    untrained = [name for name in chosen if name in NETWORKS]
    rows: list[Row] = []
    if "networks" in arguments.parts:
        rows += plans_of_networks(untrained, arguments.engines, rounds)
    if "accuracy" in arguments.parts:
        rows += equal_accuracy([name for name in chosen if name in TRAINED], arguments.engines, rounds, quick)
    if "roofline" in arguments.parts:
        rows += described([name for name in untrained if name.startswith("resnet")], arguments.engines, rounds)
    report(rows, COLUMNS, "plans for latency, one thread, batch 1 (interleaved medians)", arguments.json)
    print("\n".join(["what got worse:", *(complaints(rows) or ["nothing"])]))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
