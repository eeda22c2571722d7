"""Every rule that chooses ranks on one trained network: the same curves, budgets, fits and test pictures.

    python -m benchmarks.rules [--network NAME] [--keeps 0.5 0.3] [--rules NAME ...] [--quick] [--json FILE]

Rules that need no budget are scaled to it. Plans are factorised sequentially on the calibration samples; accuracy is
measured on the test pictures, agreement with the dense network on further ones.
"""

from __future__ import annotations

import time

import torch

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.tasks import TASKS

COLUMNS = ("network", "method", "keep", "top1", "agreement", "macs_ratio", "params_ratio", "error", "seconds")
ONE_RANK = ("svd", "spatial_svd")
# Calibration samples that rules try plans on: sixty tries of them cost less than collecting the statistics.
TRIED = 128


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--network", default="resnet20", choices=sorted(TASKS))
    options.add_argument("--keeps", type=float, nargs="+", default=[0.5, 0.3])
    options.add_argument("--rules", nargs="+", default=list(rw.RULES))
    arguments = options.parse_args()
    start(arguments)
    task = TASKS[arguments.network](networks())
    batches, model = task.batches(), task.model
    stats = rw.collect(model, batches, gradients=True)
    curves = {formats: rw.profile(model, stats, formats=formats) for formats in (ONE_RANK, (*ONE_RANK, "tucker2"))}
    tried = torch.cat(batches)[:TRIED].split(task.batch)
    trials = rw.evaluate.Trials(model, lambda plan: rw.factorise(model, plan, stats), tried)
    further = task.further[: 1000 if arguments.quick else None]
    dense = task.answers(model, further)
    rows: list[Row] = []
    for keep in arguments.keeps:
        for rule in arguments.rules:
            begin = time.perf_counter()
            own = curves[ONE_RANK if rule.startswith("drank") else (*ONE_RANK, "tucker2")]
            plan = rw.choose(model, stats, keep={"macs": keep}, rule=rule, curves=own, evaluate=trials)
            seconds = time.perf_counter() - begin
            small = rw.factorise(model, plan, stats, data=batches)
            row: Row = {"network": arguments.network, "method": rule, "budget": "macs", "keep": keep}
            row["top1"] = 100 * float((task.answers(small, task.images) == task.labels).double().mean())
            row["agreement"] = 100 * float((task.answers(small, further) == dense).double().mean())
            row |= {f"{unit}_ratio": plan.planned[unit] / plan.dense[unit] for unit in ("macs", "params")}
            row |= {"error": sum(each.error or 0.0 for each in plan.rows), "seconds": seconds, "seed": arguments.seed}
            rows.append(row)
            print(f"{rule} {keep}: {row['top1']:.1f} ({row['agreement']:.1f})", flush=True)
    report(rows, COLUMNS, f"rules on {arguments.network}", arguments.json)


if __name__ == "__main__":
    main()
