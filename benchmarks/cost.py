"""Cost of collecting statistics and of sequential factorisation, in forward passes of the dense network.

    python -m benchmarks.cost [--quick] [--json FILE]

The forward pass and the two verbs run interleaved over the same calibration images, with the settings of the accuracy
benchmark. The ratios are ratios of medians.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, interleaved, networks, parser, report, start
from benchmarks.tasks import TASKS
from rankwise.inputs.torchvision_shim import import_torchvision

COLUMNS = ("network", "what", "keep", "samples", "seconds", "forward_seconds", "ratio", "limit")
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


if __name__ == "__main__":
    main()
