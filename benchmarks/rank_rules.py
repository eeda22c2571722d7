"""Compare rules that choose ranks on trained networks: the same curves, budgets, fits and test pictures.

    python -m benchmarks.rank_rules [--parts rules seeds bayesian target] [--quick] [--seed N] [--json FILE]

rules     every rule, on ResNet-32 at half of the MACs
seeds     three draws of calibration images: the default rule and the two others with the highest agreement in the
          part `rules`, or `--rivals`
bayesian  30 trials on ResNet-20 at half of the MACs, tried with one-shot and with sequential fits
target    the smallest ResNet-20 that loses a point on one half of the JPEG test pictures, judged on the other half,
          halved in three ways; `deviation` is in standard errors of the judged mean, `of_the_difference` in standard
          errors of the judged minus the searched mean

Plans are factorised sequentially on 1,024 calibration images. `top1` is measured on 1,000 test pictures, `agreement`
with the dense network on 10,000 further JPEG copies. `prepared` is the seconds for statistics and curves, which all
rules share, `seconds` the time for the choice, tried plans included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.tasks import TASKS, Task
from rankwise.plan import Curve

ONE_RANK = ("svd", "spatial_svd")
DEFAULT = "knapsack"
CIFAR = ("resnet20", "resnet32")
# Calibration samples that rules try plans on, and how many of them a quick run takes for everything.
TRIED, QUICK = 256, 128
COLUMNS = ("network", "method", "seed", "keep", "top1", "agreement", "macs_ratio", "params_ratio", "error", "loss")
COLUMNS += ("prepared", "seconds")
TARGET_COLUMNS = ("network", "method", "split", "target", "searched", "judged", "standard_error", "deviation")
TARGET_COLUMNS += ("within_two", "of_the_difference", "pictures", "macs_ratio", "seconds")


@dataclass(frozen=True)
class Case:
    """A network with its statistics and curves, made once.

    Attributes:
        name: of the network.
        task: it, with its images.
        further: images for agreement.
        stats, curves: of the network.
        prepared: seconds that both took.
    """

    name: str
    task: Task
    further: Tensor
    stats: rw.Statistics
    curves: dict[str, Curve]
    prepared: float

    @classmethod
    def of(cls, name: str, quick: bool, seed: int | None = None) -> Case:
        """The case of a network; a seed draws the calibration images from 4,000 instead of taking the first."""
        loaded = networks()
        task = TASKS[name](loaded)
        if seed is not None:
            images, _ = loaded.cifar10_lossless("train")
            drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
            task = replace(task, calibration=images[drawn[: len(task.calibration)]])
        if quick:
            task = replace(task, calibration=task.calibration[:QUICK])
        begin = time.perf_counter()
        stats = rw.collect(task.model, task.batches(), gradients=True)
        curves = rw.profile(task.model, stats, formats=(*ONE_RANK, "tucker2"))
        further = task.further[:500] if quick else task.further
        return cls(name, task, further, stats, curves, time.perf_counter() - begin)

    @cached_property
    def batches(self) -> list[Tensor]:
        return self.task.batches()

    @cached_property
    def dense(self) -> Tensor:
        return self.task.answers(self.task.model, self.further)

    def one_shot(self, plan: rw.Plan) -> nn.Module:
        return rw.factorise(self.task.model, plan, self.stats)

    def sequential(self, plan: rw.Plan) -> nn.Module:
        return rw.factorise(self.task.model, plan, self.stats, data=self.batches)

    def brief(self, plan: rw.Plan) -> nn.Module:
        """Sequential fits on the samples that plans are tried on."""
        return rw.factorise(self.task.model, plan, self.stats, data=self.batches[: TRIED // self.task.batch])

    def trials(self, build: Callable[[rw.Plan], nn.Module]) -> rw.evaluate.Trials:
        """Trials of plans on some of the calibration samples."""
        return rw.evaluate.Trials(self.task.model, build, torch.cat(self.batches)[:TRIED].split(self.task.batch))

    def row(self, rule: str, keep: float, trials: rw.evaluate.Trials, label: str = "") -> Row:
        """Choose, factorise sequentially, measure."""
        curves = self.curves
        if rule.startswith("drank"):
            curves = {
                name: tuple(o for o in curve if o.format in ("dense", *ONE_RANK)) for name, curve in curves.items()
            }
        begin = time.perf_counter()
        plan = rw.choose(self.task.model, self.stats, keep={"macs": keep}, rule=rule, curves=curves, evaluate=trials)
        seconds = time.perf_counter() - begin
        small = self.sequential(plan)
        row: Row = {"network": self.name, "method": label or rule, "budget": "macs", "keep": keep}
        right = self.task.answers(small, self.task.images) == self.task.labels
        row["top1"] = 100 * float(right.double().mean())
        row["agreement"] = 100 * float((self.task.answers(small, self.further) == self.dense).double().mean())
        row |= {f"{unit}_ratio": plan.planned[unit] / plan.dense[unit] for unit in ("macs", "params")}
        row |= {"error": sum(each.error or 0.0 for each in plan.rows), "loss": trials(plan)}
        row |= {"prepared": self.prepared, "seconds": seconds}
        print(f"{row['method']} {keep}: {row['top1']:.1f} ({row['agreement']:.2f}), {seconds:.1f} s", flush=True)
        return row


def rules(arguments: argparse.Namespace) -> list[Row]:
    """Every rule; a rule that tries plans gets one-shot fits."""
    case = Case.of(arguments.network, arguments.quick)
    trials = case.trials(case.one_shot)
    return [case.row(rule, keep, trials) for keep in arguments.keeps for rule in arguments.rules]


def seeds(arguments: argparse.Namespace) -> list[Row]:
    """The default rule and its rivals on other calibration images."""
    rows: list[Row] = []
    for seed in range(1 if arguments.quick else 3):
        case = Case.of(arguments.network, arguments.quick, arguments.seed + seed)
        trials = case.trials(case.one_shot)
        for rule in (DEFAULT, *arguments.rivals):
            rows.append({**case.row(rule, arguments.keeps[0], trials), "seed": arguments.seed + seed})
    return rows


def bayesian(arguments: argparse.Namespace) -> list[Row]:
    """Multipliers searched on one-shot and sequential fits, compared with the plan that the search starts from."""
    case, rule = Case.of("resnet20", arguments.quick), f"bayesian:trials={4 if arguments.quick else 30}"
    one_shot, sequential = case.trials(case.one_shot), case.trials(case.brief)
    return [
        case.row(DEFAULT, 0.5, one_shot, f"{DEFAULT} (one-shot loss)"),
        case.row(rule, 0.5, one_shot, f"{rule} (one-shot loss)"),
        case.row(DEFAULT, 0.5, sequential, f"{DEFAULT} (sequential loss)"),
        case.row(rule, 0.5, sequential, f"{rule} (sequential loss)"),
    ]


def target(arguments: argparse.Namespace) -> list[Row]:
    """The requested drop on one half of the JPEG test pictures, and the drop on the other half."""
    case, rows = Case.of("resnet20", arguments.quick), []
    images, labels = networks().cifar10_jpeg("test")
    if arguments.quick:
        images, labels = images[:1000], labels[:1000]
    dense = case.task.answers(case.task.model, images)
    known: dict[str, Tensor] = {}

    def answers(plan: rw.Plan) -> Tensor:
        """Answers of a plan's network to all pictures."""
        key = str([(row.site, row.format, row.ranks) for row in plan.factorised])
        if key not in known:
            known[key] = case.task.answers(case.sequential(plan), images)
        return known[key]

    for split in range(1 if arguments.quick else 3):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(arguments.seed + split))
        search, judge = order.chunk(2)
        for measure, right in {"accuracy": labels, "agreement": dense}.items():

            def lost(plan: rw.Plan, part: Tensor, right: Tensor = right) -> Tensor:
                """For each picture: 100 where only the dense network is right, -100 where only the small one is."""
                small = answers(plan)
                return 100 * ((dense == right).double() - (small == right).double())[part]

            begin = time.perf_counter()
            plan = rw.choose(
                case.task.model,
                case.stats,
                curves=case.curves,
                target_drop=arguments.target_drop,
                drop=lambda plan, lost=lost, search=search: float(lost(plan, search).mean()),
            )
            seconds = time.perf_counter() - begin
            searched, judged = lost(plan, search), lost(plan, judge)
            error, both = _standard_error(judged), _standard_error(judged, searched)
            row: Row = {"network": case.name, "method": measure, "split": arguments.seed + split}
            row |= {"target": arguments.target_drop, "searched": float(searched.mean()), "judged": float(judged.mean())}
            row |= {"standard_error": error, "deviation": (row["judged"] - row["target"]) / error}
            row |= {"within_two": abs(row["deviation"]) <= 2}
            row["of_the_difference"] = (row["judged"] - row["searched"]) / both
            row |= {"pictures": len(judge), "macs_ratio": plan.planned["macs"] / plan.dense["macs"], "seconds": seconds}
            rows.append(row)
    return rows


def _standard_error(*parts: Tensor) -> float:
    """Standard error of a mean, or of the difference of two."""
    return sum(float(part.var()) / len(part) for part in parts) ** 0.5


def best_rivals(rows: Sequence[Row]) -> list[str]:
    """The two rules beside the default one with the highest agreement."""
    others = [row for row in rows if row["method"] != DEFAULT]
    return [row["method"] for row in sorted(others, key=lambda row: -row["agreement"])[:2]]


PARTS = {"rules": rules, "seeds": seeds, "bayesian": bayesian, "target": target}


def main() -> None:
    """Run the parts, and write all rows so far after each of them."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--network", choices=TASKS, help="network of the parts rules and seeds")
    options.add_argument("--keeps", type=float, nargs="+", default=[0.5], help="budgets of rules; seeds uses the first")
    options.add_argument("--rules", nargs="+", default=list(rw.RULES))
    options.add_argument("--rivals", nargs="+", help="rivals in seeds; by default the two best of rules")
    options.add_argument("--target-drop", type=float, default=1.0)
    arguments = options.parse_args()
    arguments.network = arguments.network or ("resnet20" if arguments.quick else "resnet32")
    parts = [part for part in PARTS if part in arguments.parts]
    if "seeds" in parts and "rules" not in parts and not arguments.rivals:
        options.error("--parts seeds compares the best rules: run it with the part rules, or name --rivals")
    if "seeds" in parts and arguments.network not in CIFAR:
        options.error(f"--parts seeds draws CIFAR-10 images, which are none for {arguments.network}")
    start(arguments)
    rows: list[Row] = []
    for part in parts:
        begin = time.perf_counter()
        own = PARTS[part](arguments)
        if part == "rules" and not arguments.rivals:
            arguments.rivals = best_rivals(own)
        rows += [{"part": part, "seed": arguments.seed, **row} for row in own]
        title = f"{part} ({time.perf_counter() - begin:.0f} s)"
        report(own, TARGET_COLUMNS if part == "target" else COLUMNS, title)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
