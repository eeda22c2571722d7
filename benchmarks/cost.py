"""Cost of statistics and of sequential factorisation, in forward passes of the dense network; and of curves and fits.

    python -m benchmarks.cost [--quick] [--json FILE]

The forward pass and the two verbs run interleaved over the same calibration images, with the settings of the accuracy
benchmark. The ratios are ratios of medians. Curves of formats that must be fitted are compared with those of the
formats with a closed form, in processor seconds. The same quick fits are counted one by one and all layers of a shape
side by side: operations, numbers that the host reads, and multiplications.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import rankwise as rw
from benchmarks.common import Row, interleaved, networks, parser, report, start
from benchmarks.tasks import TASKS
from rankwise.formats import FORMATS
from rankwise.formats.multilinear import QUICK, Multilinear
from rankwise.formats.shape import Shape
from rankwise.formats.weights import site_weight
from rankwise.inputs.torchvision_shim import import_torchvision

COLUMNS = ("network", "what", "keep", "samples", "seconds", "forward_seconds", "ratio", "limit")
CURVES = ("network", "what", "cpu_seconds", "ratio")
FITS = ("network", "what", "fits", "operations", "host_reads", "gmacs", "cpu_seconds", "gmacs_per_second")
CLOSED = ("svd", "spatial_svd", "tucker2")
LIMITS = {("resnet20", "sequential"): 6.0, ("resnet20", "collect"): 3.0, ("resnet18", "collect"): 4.0}


def forward(model: nn.Module, batches: list[Tensor]) -> None:
    """One pass over the data."""
    with torch.no_grad():
        for batch in batches:
            model(batch)


def measure(network: str, model: nn.Module, batches: list[Tensor], keep: float, rounds: int) -> list[Row]:
    """Ratios of one network."""
    stats = rw.collect(model, batches)
    plan = rw.choose(model, stats, keep={"macs": keep})
    verbs: dict[str, Callable[[], object]] = {
        "collect": partial(rw.collect, model, batches),
        "sequential": partial(rw.factorise, model, plan, stats, data=batches),
    }
    rows: list[Row] = []
    for what, verb in verbs.items():
        seconds = interleaved({"forward": partial(forward, model, batches), what: verb}, rounds)
        row: Row = {"network": network, "what": what, "samples": sum(map(len, batches))}
        row |= {"seconds": seconds[what], "forward_seconds": seconds["forward"]}
        row["ratio"] = seconds[what] / seconds["forward"]
        if what == "sequential":
            row["keep"] = keep
        if (network, what) in LIMITS:
            row["limit"] = LIMITS[network, what]
        rows.append(row)
    return rows


def curves(network: str, model: nn.Module, stats: rw.Statistics, rounds: int) -> list[Row]:
    """Processor seconds of the curves of all layers."""
    rows: list[Row] = []
    for formats in (CLOSED, (*CLOSED, "cp3")):
        seconds = []
        for _ in range(1 + rounds):  # the first is not counted
            begin = time.process_time()
            rw.profile(model, stats, formats=formats)
            seconds.append(time.process_time() - begin)
        row: Row = {"network": network, "what": f"curves: {', '.join(formats)}"}
        row["cpu_seconds"] = statistics.median(seconds[1:])
        rows.append(row | {"ratio": row["cpu_seconds"] / rows[0]["cpu_seconds"] if rows else 1.0})
    return rows


def fits(network: str, model: nn.Module, stats: rw.Statistics, together: bool) -> Row:
    """Counts and processor seconds of quick fits of cp3 to every layer that it takes, at half of its MACs."""
    format = FORMATS["cp3"]
    assert isinstance(format, Multilinear)
    alike: dict[tuple[int, ...], list[rw.Site]] = {}
    for site in stats.sites.values():
        if format.refuses(site) is None:
            alike.setdefault(site.weight_shape, []).append(site)
    calls = []
    for sites in alike.values():
        targets = [(site_weight(model, site), stats[site.name].metrics()) for site in sites]
        ladder = format.ladders(Shape.of_site(sites[0]), 1)[0]
        ranks = max(r for r in ladder if format.cost(sites[0], r, False).macs <= sites[0].macs / 2)
        some = [targets] if together else [[target] for target in targets]
        calls += [partial(format.fit_many, sites[0], few, ranks, QUICK) for few in some]

    def run() -> None:
        for call in calls:
            call()

    with Counter() as counter, FlopCounterMode(display=False) as flops:
        run()
    begin = time.process_time()
    run()
    seconds, gmacs = time.process_time() - begin, flops.get_total_flops() / 2e9
    row: Row = {"network": network, "what": f"quick fits of cp3, {'by shape' if together else 'one by one'}"}
    row |= {"fits": sum(map(len, alike.values())), "operations": counter.operations, "host_reads": counter.reads}
    return row | {"gmacs": gmacs, "cpu_seconds": seconds, "gmacs_per_second": gmacs / seconds}


class Counter(TorchDispatchMode):
    """Counts operations, and numbers that the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    start(arguments)
    rounds = 1 if arguments.quick else 5
    task = TASKS["resnet20"](networks())
    rows = measure("resnet20", task.model, task.batches(), 0.5, rounds)
    rows += measure("resnet20", task.model, task.batches(), 0.3, rounds)[1:]
    images = torch.randn(64, 3, 224, 224, generator=torch.Generator().manual_seed(arguments.seed))
    resnet18 = import_torchvision().models.resnet18(weights=None).eval()
    rows += measure("resnet18", resnet18, list(images.split(8)), 0.5, min(rounds, 3))
    report(rows, COLUMNS, "cost in forward passes (interleaved medians)", arguments.json)
    with torch.no_grad():
        stats = rw.collect(task.model, task.batches())
        report(curves("resnet20", task.model, stats, rounds), CURVES, "processor time of curves")
        found = [fits("resnet20", task.model, stats, together) for together in (False, True)]
    report(found, FITS, "quick fits")


if __name__ == "__main__":
    main()
