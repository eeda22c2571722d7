"""Accuracy against measured time: plans for MACs and for latency, in every engine, beside other libraries.

    python -m benchmarks.frontier [--networks resnet20 ...] [--plans default latency] [--engine onnxruntime]
                                  [--measured-in onnxruntime executorch compile torch] [--batches 1 32]
                                  [--peers] [--minutes 2] [--quick] [--json FILE]

Every network is planned for one engine and built without labels and without a gradient step; accuracy, and agreement
with the dense network, come from held-out images. Then all are timed in turns, in one run per engine and batch.
`--peers` adds Torch-Pruning (magnitudes, then as many minutes of label-free distillation as ours gets) at equal time,
and tensorly's decompositions of the weights at the ranks of our plan.

What got worse is listed at the end: networks slower than promised, and plans for latency that a plan for MACs beats.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

import rankwise as rw
from benchmarks import frontier_peers
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.tasks import TASKS, Task
from rankwise.latency import get_engine
from rankwise.plan import Plan
from rankwise.planning.defaults import DEFAULT_FORMATS, DEPTHWISE

NETWORKS = ("resnet20", "resnet32", "tiny_darknet", "resnet50v2_trunk")
ENGINES = ("onnxruntime", "executorch", "compile", "torch")
COMPILED = ("onnxruntime", "executorch", "compile")
# What is planned: budgets with the default formats, and both with and without the depthwise one.
KEEPS: dict[str, tuple[dict[str, float], ...]] = {
    "default": ({"macs": 0.5}, {"macs": 0.3}),
    "latency": ({"latency": 0.5}, {"latency": 0.4}, {"latency": 0.33}),
}
# A plan for half of the MACs takes at most so much more of the time.
ABOVE = 0.15
# Points of agreement that two networks of one kind differ by.
NOISE = 0.5
COLUMNS = ("network", "method", "top1", "agreement", "macs", "expected")


def planned(
    task: Task, name: str, engine: str, keeps: Sequence[Mapping[str, float]]
) -> Iterator[tuple[str, Plan, nn.Module]]:
    """Networks of all budgets: default formats, and with and without the depthwise format."""
    batches = task.batches()
    example = batches[0][:1]
    begin = time.process_time()
    stats = rw.collect(task.model, batches)
    print(f"{name}: collect {time.process_time() - begin:.0f} CPU seconds", flush=True)
    families: dict[str, tuple[str, ...] | None] = {"": None}
    families |= {", without cp3": DEFAULT_FORMATS, ", with cp3": (*DEFAULT_FORMATS, DEPTHWISE)}
    for told, formats in families.items():
        begin = time.process_time()
        curves = rw.profile(task.model, stats, formats=formats, engine=engine)
        print(f"{name}{told or ', default formats'}: profile {time.process_time() - begin:.0f} CPU seconds", flush=True)
        for keep in keeps:
            what = ", ".join(f"{unit} {share:g}" for unit, share in keep.items()) + told
            try:
                plan = rw.choose(task.model, stats, keep=keep, curves=curves, example=example, engine=engine)
            except ValueError as error:
                print(f"{name}, {what}: {error}")
                continue
            yield what, plan, rw.factorise(task.model, plan, stats, data=batches)


def judged(task: Task, network: nn.Module, dense: Tensor) -> Row:
    """Top-1 and agreement with the dense network, in per cent."""
    right = task.answers(network, task.images) == task.labels
    same = task.answers(network, task.further) == dense
    return {"top1": 100 * float(right.double().mean()), "agreement": 100 * float(same.double().mean())}


def measured(networks: Mapping[str, nn.Module], example: Tensor, engine: str, threads: int) -> dict[str, float]:
    """Time of each network over that of the dense one."""
    times = rw.evaluate.latency(networks, example, engine=engine, threads=threads)
    return {name: (times[name] / times["dense"]).median if name != "dense" else 1.0 for name in networks}


def frontier(name: str, arguments: Any) -> list[Row]:
    """All rows of a network."""
    task = TASKS[name](networks())
    keeps = [keep for what in arguments.plans for keep in KEEPS[what]][: 2 if arguments.quick else None]
    further = task.answers(task.model, task.further)
    built: dict[str, nn.Module] = {"dense": task.model}
    rows = [{"network": name, "method": "dense", **judged(task, task.model, further), "macs": 1.0}]
    for what, plan, network in planned(task, name, arguments.engine, keeps):
        built[what] = network
        row: Row = {"network": name, "method": what, **judged(task, network, further)}
        row["macs"] = plan.planned["macs"] / plan.dense["macs"]
        row["expected"] = None if plan.latency is None else plan.latency.share
        rows.append(row)
        print(row, flush=True)
        if arguments.peers and what in ("macs 0.5", "latency 0.5"):
            for peer, other in frontier_peers.peers(task, plan, network, arguments.engine, arguments.minutes):
                built[f"{what}: {peer}"] = other
                rows.append({"network": name, "method": f"{what}: {peer}", **judged(task, other, further)})
                print(rows[-1], flush=True)
    for engine in arguments.measured_in:
        for batch in arguments.batches:
            example = task.normalise(task.calibration[:batch])
            try:
                ratios = measured(built, example, engine, arguments.threads)
            except (ValueError, ImportError) as error:
                print(f"{name} in {engine}, batch {batch}: {error}")
                continue
            for row in rows:
                row[f"{engine} {batch}"] = ratios[row["method"]]
    return rows


def complaints(rows: Sequence[Row]) -> list[str]:
    """What is slower than promised, and plans for latency that are behind a plan for MACs of no more time."""
    found = []
    for row in rows:
        for column, ratio in row.items():
            engine = column.partition(" ")[0]
            if row["method"] == "macs 0.5" and engine in COMPILED and ratio > row["macs"] + ABOVE:
                found.append(f"{row['network']}, {row['method']}, {column}: {ratio:.2f} of the dense time")
    own = [row for row in rows if row["method"].startswith("latency") and ":" not in row["method"]]
    others = [row for row in rows if row["method"].startswith("macs") and ":" not in row["method"]]
    for row in own:
        column = next(name for name in row if name.endswith(" 1"))
        for other in others:
            same = other["network"] == row["network"] and other[column] <= row[column]
            if same and other["agreement"] > row["agreement"] + NOISE:
                found.append(f"{row['network']}: {row['method']} is behind {other['method']}")
    return found


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    options.add_argument("--plans", nargs="+", default=list(KEEPS), choices=list(KEEPS))
    options.add_argument("--engine", default="onnxruntime", help="planned for")
    options.add_argument("--measured-in", nargs="+", default=list(ENGINES), choices=ENGINES)
    options.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    options.add_argument("--peers", action="store_true", help="Torch-Pruning and tensorly beside")
    options.add_argument("--minutes", type=float, default=2.0, help="of healing for pruned networks, and for ours")
    arguments = options.parse_args()
    start(arguments)
    get_engine(arguments.engine)
    rows = [row for name in arguments.networks for row in frontier(name, arguments)]
    timed = [f"{engine} {batch}" for engine in arguments.measured_in for batch in arguments.batches]
    report(rows, (*COLUMNS, *timed), "accuracy, and time over that of the dense network", arguments.json)
    for line in complaints(rows):
        print(f"worse: {line}")


if __name__ == "__main__":
    main()
