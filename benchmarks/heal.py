"""Healing without labels: top-1 and distance from the dense network, before and after a few minutes per budget.

    python -m benchmarks.heal [--networks resnet20] [--formats default cp3] [--keeps 0.5 0.3 0.2] [--minutes 10]
        [--epochs E] [--samples N] [--variants default] [--quick] [--seed N] [--json FILE]

Each network is compressed with its calibration images and healed on all available images without labels: for ResNet-20
4,000 lossless training images and 50,000 JPEG copies. `held_out` is the divergence from the dense network, in nats, on
up to 1,024 images that are not trained on; it alone chooses the state. The accuracy on the test images is only read at
the end.
"""

from __future__ import annotations

import time
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.tasks import TASKS, Task
from rankwise.training import Look

COLUMNS = (
    "network",
    "formats",
    "variant",
    "keep",
    "macs_ratio",
    "dense_top1",
    "before",
    "after",
    "paired_se",
    "held_out_before",
    "held_out_after",
    "images",
    "steps",
    "minutes",
)
CIFAR = ("resnet20", "resnet32")
FORMATS = {"default": ("svd", "spatial_svd", "tucker2"), "cp3": ("svd", "cp3")}
# What each variant changes of the network's settings.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "blocks": {"blocks": True},
    "all": {"train": "all"},
    "statistics": {"statistics": True},
    "sgd": {"optimiser": "sgd", "rate": 0.02},
    "rate-2e-4": {"rate": 2e-4},
    "rate-5e-4": {"rate": 5e-4},
    "rate-3e-3": {"rate": 3e-3},
    "temperature-4": {"temperature": 4.0},
    "flip-crop": {"augment": "flip,crop"},
    "no-augment": {"augment": None},
}


def unlabelled(module: ModuleType, name: str, task: Task) -> Tensor:
    """All images that a network may heal on, without labels and without its test images; bytes."""
    if name in CIFAR:
        return torch.cat([module.cifar10_lossless("train")[0], module.cifar10_jpeg("train")[0]])
    pictures = module.imagenette("train")[0]
    return pictures if name == "resnet50v2_trunk" else torch.cat([task.calibration, pictures])


def chosen(images: Tensor, count: int | None, first: int, seed: int) -> Tensor:
    """The first images, and further ones chosen by the seed; all without a count."""
    if count is None or count >= len(images):
        return images
    if count <= first:
        return images[:count]
    order = torch.randperm(len(images) - first, generator=torch.Generator().manual_seed(seed))[: count - first]
    return torch.cat([images[:first], images[first + order]])


def measure(
    name: str,
    task: Task,
    images: Tensor,
    formats: str,
    keep: float,
    variants: list[str],
    limit: dict[str, Any],
    seed: int,
) -> list[Row]:
    """One row for each variant; the limit is in minutes or epochs."""
    small, compressed = rw.compress(
        task.model, task.batches(), keep={"macs": keep}, formats=FORMATS[formats], seed=seed
    )
    for network in (task.model, small):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # thin layers are faster so
    dense_right = task.answers(task.model, task.images) == task.labels
    before_right = task.answers(small, task.images) == task.labels
    rows: list[Row] = []
    for variant in variants:
        settings = {**_settings(name), **VARIANTS[variant]}
        begin = time.perf_counter()
        healed, healing = rw.heal(
            small,
            task.model,
            images,
            prepare=task.normalise,
            seed=seed,
            progress=_say,
            **limit,
            **settings,
        )
        seconds = time.perf_counter() - begin
        after_right = task.answers(healed, task.images) == task.labels
        difference = after_right.double() - before_right.double()
        rows.append(
            {
                "network": name,
                "formats": formats,
                "variant": variant,
                "keep": keep,
                "macs_ratio": compressed.compressed.macs / compressed.dense.macs,  # type: ignore[operator]
                "dense_top1": _percent(dense_right),
                "before": _percent(before_right),
                "after": _percent(after_right),
                "paired_se": 100 * float(difference.std()) / len(difference) ** 0.5,
                "held_out_before": healing.before,
                "held_out_after": healing.after,
                "images": healing.samples,
                "steps": sum(stage.steps for stage in healing.stages.values()),
                "minutes": seconds / 60,
                "seed": seed,
            }
        )
        print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def _settings(name: str) -> dict[str, Any]:
    """How a network of that name is healed."""
    if name in CIFAR:
        return {"augment": "flip,crop,mixup", "batch": 128, "rate": 1e-3}
    return {"augment": "flip,crop", "batch": 16, "rate": 3e-4}


def _say(stage: str, look: Look) -> None:
    loss = "" if look.loss is None else f"loss {look.loss:.4f}, "
    print(f"  {stage} {look.share:4.0%}, {look.seconds:4.0f} s, {loss}held out {look.held_out:.5f}", flush=True)


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    known = [*CIFAR, "tiny_darknet", "resnet50v2_trunk"]
    options.add_argument("--networks", nargs="+", default=["resnet20"], choices=known)
    options.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    options.add_argument("--keeps", nargs="+", type=float, default=[0.5, 0.3, 0.2])
    options.add_argument("--variants", nargs="+", default=["default"], choices=list(VARIANTS))
    options.add_argument("--minutes", type=float, default=10.0, help="minutes of healing for each row")
    options.add_argument("--epochs", type=float, help="passes over the images instead of minutes")
    options.add_argument("--samples", type=int, help="number of unlabelled images; by default all")
    options.add_argument("--device", default="cpu")
    arguments = options.parse_args()
    start(arguments)
    limit = {"minutes": arguments.minutes} if arguments.epochs is None else {"epochs": arguments.epochs}
    if arguments.quick:
        arguments.keeps, arguments.formats, arguments.samples = [0.3], ["default"], 4000
        limit = {"minutes": min(arguments.minutes, 0.25)}
    module = networks()
    rows: list[Row] = []
    for name in arguments.networks:
        task = TASKS[name](module)
        if arguments.quick:
            task = replace(task, calibration=task.calibration[:256])
        task.model.to(arguments.device)
        first = 4000 if name in CIFAR else len(task.calibration)
        images = chosen(unlabelled(module, name, task), arguments.samples, first, arguments.seed)
        for formats in arguments.formats:
            for keep in arguments.keeps:
                rows += measure(name, task, images, formats, keep, arguments.variants, limit, arguments.seed)
                report(rows, COLUMNS, "healing without labels", arguments.json)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
