"""Statistics of other data: compress a network from a stored file of statistics, without its own data.

    python -m benchmarks.transfer [--formats default tucker2 cp3] [--sources own jpeg ...] [--quick] [--json FILE]

ResNet-20 at half its MACs, one-shot. Every row reads a file of moments, without rows of activations, that was collected
on 1,024 pictures: the first training pictures (own), others of the training set after JPEG compression (jpeg), five of
the ten classes (five), photographs with ImageNet labels shrunk to 32 x 32 (photos), random pixels (noise). Each is used
unchanged, and shrunk towards the weight metric. 128 further training pictures choose the share, once for every source,
on the fits of the default formats; if it is 0, there is no second row.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.tasks import TASKS, Task
from rankwise.planning.profile import DEFAULT_FORMATS

COLUMNS = (
    "formats",
    "what",
    "shrink",
    "top1",
    "against_own",
    "paired_se",
    "against_weight",
    "agreement",
    "macs_ratio",
    "seconds",
)
KEEP = {"macs": 0.5}
# A format for kernels above 1 x 1, and the SVD for the others.
FORMATS: dict[str, tuple[str, ...]] = {"default": DEFAULT_FORMATS, "tucker2": ("svd", "tucker2"), "cp3": ("svd", "cp3")}
SAMPLES = 1024
WEIGHT = "weight metric"
HELD_OUT = slice(3000, 3128)  # of the 4,000 lossless training images; own statistics are from the first 1,024


def sources(module: ModuleType, seed: int, samples: int) -> dict[str, Callable[[], Tensor]]:
    """Pictures by the name of their source, as uint8 N x 3 x 32 x 32."""
    random = torch.Generator().manual_seed(seed)

    def jpeg() -> Tensor:
        images = module.cifar10_jpeg("train")[0]  # ordered by class
        return images[torch.randperm(len(images), generator=random)[:samples]]

    def five() -> Tensor:
        images, labels = module.cifar10_lossless("train")
        return images[labels < 5][:samples]

    def photos() -> Tensor:
        images = module.imagenet_photos()[0][:samples]
        return F.interpolate(images.float(), size=(32, 32), mode="area").round().to(torch.uint8)

    def noise() -> Tensor:
        return torch.randint(256, (samples, 3, 32, 32), generator=random, dtype=torch.uint8)

    return {
        "own": lambda: module.cifar10_lossless("train")[0][:samples],
        "jpeg": jpeg,
        "five": five,
        "photos": photos,
        "noise": noise,
    }


def stored(task: Task, images: Tensor, seed: int, folder: Path) -> rw.Statistics:
    """Statistics as somebody else would get them: from a file without rows."""
    stats = rw.collect(task.model, batches(task, images), seed=seed).without_rows()
    return rw.Statistics.load(stats.save(folder / "stats.safetensors"))


def batches(task: Task, images: Tensor) -> list[Tensor]:
    """Normalised batches."""
    return [task.normalise(chunk) for chunk in images.split(task.batch)]


class Measured:
    """Answers of compressed networks, compared with the dense one, own statistics and the weight metric."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self.example = task.normalise(task.images[:1])
        self.macs = rw.find(task.model, self.example).total_macs
        self.dense = task.answers(task.model, task.further)
        self.right: dict[tuple[str, str], Tensor] = {}

    def row(self, formats: str, what: str, small: nn.Module, seconds: float, shrink: float) -> Row:
        """Figures of one compressed network, beside the first one from own statistics and in the weight metric."""
        right = self.task.answers(small, self.task.images) == self.task.labels
        agreement = self.task.answers(small, self.task.further) == self.dense
        row: Row = {
            "network": "resnet20",
            "formats": formats,
            "what": what,
            "shrink": shrink,
            "top1": _percent(right),
            "agreement": _percent(agreement),
            "macs_ratio": rw.find(small, self.example).total_macs / self.macs,
            "seconds": seconds,
            "seed": self.seed,
        }
        self.right.setdefault((formats, what), right)
        for key, other in (("against_own", "own"), ("against_weight", WEIGHT)):
            if (formats, other) in self.right:
                difference = right.double() - self.right[formats, other].double()
                row[key] = 100 * float(difference.mean())
                if other == "own":
                    row["paired_se"] = 100 * float(difference.std()) / len(difference) ** 0.5
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        return row


def compare(measured: Measured, name: str, known: dict[str, rw.Statistics], shares: dict[str, float]) -> list[Row]:
    """Rows of one set of formats: the weight metric, then every source unchanged and shrunk."""
    model, formats, rows = measured.task.model, FORMATS[name], []
    sites = rw.find(model, measured.example)

    def add(what: str, source: rw.Statistics | rw.Sites, **metric: Any) -> None:
        begin = time.perf_counter()
        plan = rw.choose(model, source, keep=KEEP, formats=formats, **metric)
        small = rw.factorise(model, plan, source)
        rows.append(measured.row(name, what, small, time.perf_counter() - begin, metric.get("shrink", 1.0)))

    add(WEIGHT, sites, metric="weight")
    for what, stats in known.items():
        for share in sorted({0.0, shares[what]}):
            add(what, stats, shrink=share)
    return rows


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    options.add_argument("--sources", nargs="+", choices=["own", "jpeg", "five", "photos", "noise"])
    arguments = options.parse_args()
    start(arguments)
    module = networks()
    task = TASKS["resnet20"](module)
    samples, names = SAMPLES, arguments.formats
    if arguments.quick:
        samples, names = 256, names[:1]
        task = replace(task, further=task.further[::10])
    held_out = batches(task, module.cifar10_lossless("train")[0][HELD_OUT])
    known, shares = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, images in sources(module, arguments.seed, samples).items():
            if arguments.sources and name not in arguments.sources:
                continue
            known[name] = stats = stored(task, images(), arguments.seed, Path(folder))
            plan = rw.choose(task.model, stats, keep=KEEP)
            shares[name] = rw.choose_shrinkage(task.model, plan, stats, held_out, seed=arguments.seed)
            print(f"{name}: share of the weight metric {shares[name]}", flush=True)
    measured, rows = Measured(task, arguments.seed), []
    for name in names:
        rows += compare(measured, name, known, shares)
        report(rows, COLUMNS, "statistics of other data, ResNet-20 at half its MACs, one-shot", arguments.json)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rankwise").setLevel(logging.INFO)
    main()
