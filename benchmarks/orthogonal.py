"""Compare training with orthogonal factors, cut at EVBMF ranks, with training dense and compressing.

    python -m benchmarks.orthogonal [--networks lenet5 resnet8] [--orthogonal none soft:1 ...] [--seeds 0 1 2]
        [--epochs 8] [--rate R] [--samples N] [--quick] [--json FILE]

Every network is trained from random weights: three quarters of the epochs dense, or with its hidden layers expanded to
chains of full rank; then it is cut, then it is trained for the rest of the epochs. An expanded network is cut at its
EVBMF ranks and fitted to 512 of its training images. For comparison, the dense network is compressed to the same number
of parameters by `rankwise.compress` (default rule and metric, the same images) and trained on for as long. All see the
same samples in the same order, with AdamW, the same rate and a tenth of it after the cut, and batch norms that are
trained. A tenth of the samples (at most 1,024) is held out and chooses the state that is kept. The test images are only
read at the end.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.slr_cases import LeNet5
from rankwise.training import Loop, LoopOptions, Samples, augmentation, train

COLUMNS = (
    *("network", "method", "seed", "epochs", "params", "share", "trained_top1", "cut_top1", "top1"),
    *("deviation", "ranks", "seconds"),
)
TUNE = 0.25
# The best for the dense network of 1e-3, 3e-3, 1e-2 after three epochs on few images.
RATES = {"lenet5": 1e-2, "resnet8": 1e-3}
CALIBRATION = 512


class ResNet8(nn.Module):
    """Three residual blocks of 16, 32 and 64 channels for images of 32 x 32, their shortcuts without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        y: Tensor = self.linear(x.mean((2, 3)))
        return y


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut that drops positions and adds channels of zeros."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return (x + y).relu()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network to train, and its images."""

    build: type[nn.Module]
    hidden: tuple[str, ...]
    images: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    augment: str | None = None

    @classmethod
    def of(cls, name: str, module: ModuleType, samples: int | None, tests: int) -> Case:
        """The network of that name, with training and test images chosen by one seed."""
        few = torch.Generator().manual_seed(0)

        def part(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
            chosen = torch.randperm(len(images), generator=few)[:count]
            return images[chosen], labels[chosen]

        if name == "lenet5":
            x, y = part(*module.mnist("train"), samples or 20000)
            test, test_labels = part(*module.mnist("test"), tests)
            normalise = module.normalise_mnist
        else:
            x, y = part(*module.cifar10_jpeg("train"), samples or 10000)
            test, test_labels = part(*module.cifar10_jpeg("test"), tests)
            normalise = module.normalise_imagenet
        return cls(
            build=LeNet5 if name == "lenet5" else ResNet8,
            hidden=("convolutions.*", "fc") if name == "lenet5" else ("*conv*",),
            augment=None if name == "lenet5" else "flip",
            images=normalise(x),
            labels=y,
            test=normalise(test),
            test_labels=test_labels,
        )

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Per cent of the test images."""
        model = copy.deepcopy(model).eval()
        answers = torch.cat([model(x).argmax(1) for x in self.test.split(500)])
        return 100 * float((answers == self.test_labels).double().mean())


def orthogonal(case: Case, model: nn.Module, kind: str, epochs: float, options: dict[str, Any]) -> tuple[Row, int]:
    """The figures of one way to train expanded, and the number of parameters."""
    begin = time.perf_counter()
    small, told = train(
        model,
        case.images,
        case.labels,
        only=case.hidden,
        orthogonal=kind,
        epochs=epochs,
        tune=TUNE,
        calibration=CALIBRATION,
        augment=case.augment,
        **options,
    )
    row: Row = {
        "method": f"expanded, {kind}",
        "params": told.plan.planned["params"],
        "share": told.plan.planned["params"] / told.plan.dense["params"],
        "trained_top1": case.accuracy(told.dense),
        "cut_top1": case.accuracy(told.cut),
        "top1": case.accuracy(small),
        "deviation": told.deviation,
        "ranks": " ".join("-" if r.format == "dense" else ",".join(map(str, r.ranks)) for r in told.plan.rows),
        "seconds": time.perf_counter() - begin,
    }
    return row, told.plan.planned["params"]


def tuned(case: Case, model: nn.Module, epochs: float, options: dict[str, Any]) -> nn.Module:
    """A copy of the model, trained."""
    model = copy.deepcopy(model)
    samples = Samples.of(case.images, labels=case.labels)
    how = LoopOptions(epochs=epochs, statistics=True, **options)

    def loss(x: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        return cross_entropy(model(x), y)

    Loop(model, loss, samples, how, augment=augmentation(case.augment)).run()
    return model


def compressed(
    case: Case, dense: nn.Module, params: int, epochs: float, seconds: float, options: dict[str, Any]
) -> Row:
    """The figures of compressing a trained network to that many parameters."""
    begin = time.perf_counter()
    chosen = Samples.of(case.images).split(0.1, options["seed"])[0][:CALIBRATION]
    cut, told = rw.compress(dense, list(case.images[chosen].split(64)), keep={"params": params}, seed=options["seed"])
    small = tuned(case, cut, TUNE * epochs, {**options, "rate": options["rate"] / 10})
    count = sum(parameter.numel() for parameter in small.parameters())
    return {
        "method": "dense, compressed",
        "params": count,
        "share": count / sum(parameter.numel() for parameter in dense.parameters()),
        "trained_top1": case.accuracy(dense),
        "cut_top1": case.accuracy(cut),
        "top1": case.accuracy(small),
        "ranks": " ".join("-" if r.format == "dense" else ",".join(map(str, r.ranks)) for r in told.plan.rows),
        "seconds": seconds + time.perf_counter() - begin,
    }


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--networks", nargs="+", default=["lenet5", "resnet8"], choices=["lenet5", "resnet8"])
    options.add_argument("--orthogonal", nargs="+", default=["none", "soft:1"], help="penalties, as in rankwise train")
    options.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of the weights and the order")
    options.add_argument("--epochs", type=float, default=8.0)
    options.add_argument("--rate", type=float, help=f"learning rate; by default {RATES}")
    options.add_argument("--rule", default="evbmf")
    options.add_argument("--samples", type=int, help="number of training images")
    arguments = options.parse_args()
    start(arguments)
    if arguments.quick:
        arguments.seeds, arguments.epochs = arguments.seeds[:1], min(arguments.epochs, 4.0)
        arguments.samples = min(arguments.samples or 1000, 1000)
    module = networks()
    rows: list[Row] = []
    for name in arguments.networks:
        case = Case.of(name, module, arguments.samples, 1000 if arguments.quick else 10000)
        for seed in arguments.seeds:
            torch.manual_seed(seed)
            model = case.build().eval()
            how = {"rate": arguments.rate or RATES[name], "batch": 64, "seed": seed}
            begin = time.perf_counter()
            dense = tuned(case, model, (1 - TUNE) * arguments.epochs, how)
            seconds = time.perf_counter() - begin
            for kind in arguments.orthogonal:
                own, params = orthogonal(case, model, kind, arguments.epochs, {**how, "rule": arguments.rule})
                for row in (own, compressed(case, dense, params, arguments.epochs, seconds, how)):
                    rows.append({"network": name, "seed": seed, "epochs": arguments.epochs, **row})
                    print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
                report(rows, COLUMNS, "orthogonal training", arguments.json)


if __name__ == "__main__":
    main()
