"""Compare all metrics on one trained network: the same budgets, one-shot and sequential fits, two rules.

    python -m benchmarks.metrics [--network NAME] [--keeps 0.5 0.3] [--formats NAME ...] [--quick] [--json FILE]

`weight` sees no data, `diagonal` the variance of each input, `input` their covariance, `fisher` also the gradients at
the outputs, from the Fisher information of the network's own answers. The rules are the product of what layers keep
(`knapsack`) and the loss that second derivatives predict (`fisher`). The columns are accuracy on the test pictures,
agreement with the dense network on a fifth of the further ones, and the Kullback-Leibler divergence between both
networks on half of the calibration pictures, measured and as the plan predicted it (metric and rule `fisher`,
one-shot).
"""

from __future__ import annotations

import time

from torch import nn

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.tasks import TASKS
from rankwise.evaluate import divergence
from rankwise.formats.weights import site_weight
from rankwise.names import METRICS
from rankwise.planning.profile import DEFAULT_FORMATS
from rankwise.statistics.gradients import fisher_energy

COLUMNS = ("network", "keep", "metric", "rule", "method", "top1", "agreement", "divergence", "predicted", "macs_ratio")
RULES = ("knapsack", "fisher")


def predicted(stats: rw.Statistics, model: nn.Module, plan: rw.Plan) -> float:
    """The loss that second derivatives predict for a plan in the metric `fisher`."""
    energies = {
        row.site: fisher_energy(site_weight(model, stats.sites[row.site]), stats[row.site]) for row in plan.factorised
    }
    return sum(energies[row.site] * (row.error or 0.0) for row in plan.factorised)


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--network", default="resnet20", choices=sorted(TASKS))
    options.add_argument("--keeps", type=float, nargs="+", default=[0.5, 0.3])
    options.add_argument("--metrics", nargs="+", default=list(reversed(METRICS[:4])))
    options.add_argument("--formats", nargs="+", default=list(DEFAULT_FORMATS))
    arguments = options.parse_args()
    start(arguments)
    task = TASKS[arguments.network](networks())
    batches, model = task.batches(), task.model
    seconds = {}
    for gradients in (False, True):
        begin = time.perf_counter()
        stats = rw.collect(model, batches, gradients=gradients, seed=arguments.seed)
        seconds[gradients] = time.perf_counter() - begin
    print(f"statistics: {seconds[False]:.1f} s, with gradients {seconds[True]:.1f} s")
    further = task.further[:: 50 if arguments.quick else 5]  # they are ordered by class
    dense, watched = task.answers(model, further), batches[: len(batches) // 2]
    rows: list[Row] = []
    for metric in arguments.metrics:
        curves = rw.profile(model, stats, formats=arguments.formats, metric=metric)
        for keep in arguments.keeps:
            for rule in RULES:
                plan = rw.choose(model, stats, keep={"macs": keep}, rule=rule, curves=curves, metric=metric)
                for method, data in (("one-shot", None), ("sequential", batches)):
                    small = rw.factorise(model, plan, stats, data=data)
                    row: Row = {"network": arguments.network, "method": method, "metric": metric, "rule": rule}
                    row |= {"budget": "macs", "keep": keep, "seed": arguments.seed}
                    row["top1"] = 100 * float((task.answers(small, task.images) == task.labels).double().mean())
                    row["agreement"] = 100 * float((task.answers(small, further) == dense).double().mean())
                    row["divergence"] = divergence(model, small, watched)
                    if metric == "fisher" and rule == "fisher" and data is None:
                        row["predicted"] = predicted(stats, model, plan)
                    row |= {f"{unit}_ratio": plan.planned[unit] / plan.dense[unit] for unit in ("macs", "params")}
                    rows.append(row)
                    print("  ".join(f"{key}={row.get(key)}" for key in COLUMNS[1:]), flush=True)
    rows.sort(key=lambda row: (-row["keep"], row["method"]))
    report(rows, COLUMNS, f"metrics on {arguments.network}, formats {', '.join(arguments.formats)}", arguments.json)


if __name__ == "__main__":
    main()
