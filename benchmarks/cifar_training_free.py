"""Accuracy of training-free compression: no labels, no gradient step.

    python -m benchmarks.cifar_training_free [--networks resnet20 ...] [--formats auto] [--quick] [--json FILE]

Every method gets the same calibration images and the same budget in MACs. Variants of our method are chosen by their
agreement with the dense network on further images; the accuracy on the test images is only read at the end. With
`--formats auto`, each format alone (with the SVD for layers that it cannot factorise) and the choice among all formats
are measured. `against_best` is the agreement of that choice minus that of the best single format, `best_se` its paired
standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.baselines import balf
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.tasks import TASKS, Task
from rankwise.plan import Curve
from rankwise.planning.profile import DEFAULT_FORMATS

COLUMNS = (
    "network",
    "method",
    "budget",
    "keep",
    "top1",
    "agreement",
    "macs_ratio",
    "params_ratio",
    "against_baseline",
    "paired_se",
    "best",
    "against_best",
    "best_se",
    "seconds",
)
AUTO_BUDGETS: list[dict[str, float]] = [{"macs": 0.5}, {"macs": 0.3}, {"macs": 0.2}, {"params": 0.2}]
CHOICE = "ours, auto"
OURS = {"ours svd": "svd", "ours spatial svd": "spatial_svd", "ours tucker2": "tucker2", "ours per layer": "auto"}
Methods = dict[str, Callable[[dict[str, float]], nn.Module]]


class Compressor:
    """All methods on one network; statistics and curves are computed once.

    Args:
        task: network and data.
        seed: of the positions.
        device: of the model and the data.
    """

    def __init__(self, task: Task, seed: int, device: str) -> None:
        self.model = task.model.to(device)
        self.batches = task.batches(device)
        self.seed = seed
        self.known: dict[str, rw.Statistics] = {}
        self.curves: dict[tuple[str, tuple[str, ...]], dict[str, Curve]] = {}

    def learn(
        self, positions: str = "auto", formats: tuple[str, ...] = DEFAULT_FORMATS
    ) -> tuple[rw.Statistics, dict[str, Curve]]:
        """Statistics from some or all output positions of each image, and curves of some formats."""
        if positions not in self.known:
            self.known[positions] = rw.collect(self.model, self.batches, positions=positions, seed=self.seed)
        stats = self.known[positions]
        if (positions, formats) not in self.curves:
            begin = time.perf_counter()
            self.curves[positions, formats] = rw.profile(self.model, stats, formats=formats)
            print(f"curves of {', '.join(formats)}: {time.perf_counter() - begin:.0f} s", flush=True)
        return stats, self.curves[positions, formats]

    def frobenius(self, keep: dict[str, float]) -> nn.Module:
        """Plain SVD with the knapsack on relative Frobenius error."""
        sites = self.learn()[0].sites
        plan = rw.choose(self.model, sites, keep=keep, metric="weight", formats=("svd",), round_to=1)
        return rw.factorise(self.model, plan, sites)

    def baseline(self, keep: dict[str, float]) -> nn.Module:
        """The best published training-free method."""
        return balf(self.model, self.learn()[0], keep)[0]

    def ours(self, keep: dict[str, float], format: str, positions: str = "auto") -> nn.Module:
        """Sequential factorisation with one format for kernels above 1 x 1 (SVD for the others), or all of them."""
        stats, curves = self.learn(positions)
        if format != "auto":
            allowed = {name: ("dense", format if site.taps > 1 else "svd") for name, site in stats.sites.items()}
            curves = {name: tuple(o for o in curve if o.format in allowed[name]) for name, curve in curves.items()}
        plan = rw.choose(self.model, stats, keep=keep, curves=curves)
        return rw.factorise(self.model, plan, stats, data=self.batches, positions=positions, seed=self.seed)

    def among(self, keep: dict[str, float], formats: tuple[str, ...]) -> nn.Module:
        """Sequential factorisation, every layer in the best of some formats."""
        stats, curves = self.learn(formats=formats)
        plan = rw.choose(self.model, stats, keep=keep, curves=curves)
        return rw.factorise(self.model, plan, stats, data=self.batches, seed=self.seed)

    def every_format(self, only: list[str] | None) -> Methods:
        """Method by name: each format alone, with the SVD for layers that it cannot factorise, and all together."""
        result: Methods = {
            f"ours {name}": partial(self.among, formats=tuple(dict.fromkeys(("svd", name)))) for name in rw.FORMATS
        }
        result[CHOICE] = partial(self.among, formats=("auto",))
        return {name: run for name, run in result.items() if not only or any(word in name for word in only)}

    def methods(self, only: list[str] | None) -> Methods:
        """Method by name; the others are compared with the first, the baseline."""
        result: Methods = {
            "baseline (input-metric SVD)": self.baseline,
            "SVD in the Frobenius norm": self.frobenius,
        }
        for name, format in OURS.items():
            result[name] = partial(self.ours, format=format)
        result["ours, all positions"] = partial(self.ours, format="auto", positions="all")
        return {name: run for name, run in result.items() if not only or any(word in name for word in only)}


def measure(name: str, task: Task, options: Compressor, methods: Methods, budgets: list[dict[str, float]]) -> list[Row]:
    """Rows of one network; every method is compared with the first one."""
    model = options.model
    dense_test = task.answers(model, task.images)
    own = task.further is task.images
    dense_further = dense_test if own else task.answers(model, task.further)
    dense_right = dense_test == task.labels
    example = options.batches[0][:1]
    before = rw.evaluate.size(model, example)
    rows: list[Row] = [{"network": name, "method": "dense", "keep": 1.0, "top1": _percent(dense_right)}]
    for budget in budgets:
        ((unit, keep),) = budget.items()
        baseline: Tensor | None = None
        agreeing: dict[str, Tensor] = {}
        for method, run in methods.items():
            begin = time.perf_counter()
            small = run(budget)
            seconds = time.perf_counter() - begin
            after = rw.evaluate.size(small, example)
            answers = task.answers(small, task.images)
            further = answers if own else task.answers(small, task.further)
            right = answers == task.labels
            row: Row = {
                "network": name,
                "method": method,
                "budget": unit,
                "keep": keep,
                "top1": _percent(right),
                "agreement": _percent(further == dense_further),
                "macs_ratio": after.macs / before.macs,  # type: ignore[operator]
                "params_ratio": after.params / before.params,
                "seconds": seconds,
                "seed": options.seed,
            }
            if baseline is None:
                baseline = right
            else:
                row["against_baseline"], row["paired_se"] = _difference(right, baseline)
            if method == CHOICE and agreeing:
                row["best"] = max(agreeing, key=lambda name: int(agreeing[name].sum()))
                row["against_best"], row["best_se"] = _difference(further == dense_further, agreeing[row["best"]])
            agreeing[method] = further == dense_further
            rows.append(row)
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return rows


def _difference(right: Tensor, other: Tensor) -> tuple[float, float]:
    """Difference of two methods on the same images in percentage points, and its standard error."""
    difference = right.double() - other.double()
    return 100 * float(difference.mean()), 100 * float(difference.std()) / len(difference) ** 0.5


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--networks", nargs="+", default=list(TASKS), choices=list(TASKS))
    options.add_argument("--keeps", nargs="+", type=float, help="budgets; by default each network's own")
    options.add_argument("--unit", choices=["macs", "params"], default="macs", help="unit of --keeps")
    options.add_argument("--formats", choices=["default", "auto"], default="default")
    options.add_argument("--methods", nargs="+", help="only methods whose name contains one of these words")
    options.add_argument("--device", default="cpu")
    arguments = options.parse_args()
    if arguments.unit != "macs" and not arguments.keeps:
        options.error("--unit says what --keeps counts; give --keeps as well")
    start(arguments)
    chosen = ["resnet20"] if arguments.quick else arguments.networks
    module = networks()
    rows: list[Row] = []
    for name in chosen:
        task = TASKS[name](module)
        if arguments.quick:
            task = replace(task, calibration=task.calibration[:256], further=task.further[::10])
        compressor = Compressor(task, arguments.seed, arguments.device)
        if arguments.formats == "auto":
            methods, budgets = compressor.every_format(arguments.methods), AUTO_BUDGETS
        else:
            methods, budgets = compressor.methods(arguments.methods), [{"macs": keep} for keep in task.keeps]
        if arguments.keeps:
            budgets = [{arguments.unit: keep} for keep in arguments.keeps]
        rows += measure(name, task, compressor, methods, budgets)
        report(rows, COLUMNS, "training-free compression", arguments.json)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
