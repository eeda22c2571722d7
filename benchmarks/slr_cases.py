"""Networks for the benchmark of sparse low rank; two of them are trained here.

Each case has a test set, and labelled samples to learn from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rankwise as rw
from benchmarks.tasks import TASKS
from rankwise.formats import Format, Ranks, get_format
from rankwise.formats.weights import site_weight
from rankwise.planning.prices import recount

# Plans that a curve is asked for.
BUDGETS = 12


@dataclass(kw_only=True)
class Case:
    """Layers of one network that are replaced together, with the data to do and to judge it.

    Attributes:
        network: its name in the tables.
        model: the network, or the part of it from the layer on.
        names: the layers.
        inputs, labels: the test set.
        calibration, answers: samples that may be learnt from, and their labels.
        ks: ranks of the truncated SVD, or shares of the full rank for several layers.
        grid: those of sparse low rank as published.
        batch: samples that are run at once.
        rates: sparsity rates and reduction rates of the grid.
        shares: of the layers' parameters that plans are asked for; by default those of some of the ks.
        before: parameters of the network in front of the part.
        lowest: the table of shares looks at accuracies down to the dense one's less this many points.
    """

    network: str
    model: nn.Module
    names: tuple[str, ...]
    inputs: Tensor
    labels: Tensor
    calibration: Tensor
    answers: Tensor
    ks: Sequence[float]
    grid: Sequence[float]
    batch: int = 500
    rates: tuple[Sequence[float], Sequence[float]] = ((0.3, 0.5, 0.7, 0.9), (0.0, 0.25, 0.5))
    shares: Sequence[float] = ()
    before: int = 0
    lowest: float = 3.0
    stats: rw.Statistics = field(init=False)

    def __post_init__(self) -> None:
        self.stats = rw.collect(self.model, list(self.calibration.split(self.batch)), only=self.names)

    @property
    def sites(self) -> dict[str, rw.Site]:
        return {name: self.stats.sites[name] for name in self.names}

    def weight(self, name: str) -> Tensor:
        return site_weight(self.model, self.stats.sites[name])

    def weights(self) -> int:
        """Numbers in the weights of the layers."""
        return sum(self.weight(name).numel() for name in self.names)

    def data(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.calibration.split(self.batch), self.answers.split(self.batch), strict=True))

    def rank(self, name: str, k: float) -> int:
        site = self.stats.sites[name]
        full = min(site.out_features // site.groups, site.in_features)
        return max(1, round(k * full)) if isinstance(k, float) else min(k, full)

    def budgets(self) -> list[int]:
        """Budgets in parameters: those of the truncated SVD at some of its ranks, or shares of dense."""
        if self.shares:
            return [round(share * self.weights()) for share in self.shares]
        svd = get_format("svd")
        ks = self.ks[:: max(1, len(self.ks) // BUDGETS)]
        return [sum(svd.cost(s, (self.rank(s.name, k),), False).params for s in self.sites.values()) for k in ks]

    def plan(self, layers: Mapping[str, tuple[str, Ranks]], metric: str) -> rw.Plan:
        rows = tuple(
            rw.PlanRow(site=name, format=format, ranks=ranks, params=0, macs=0)  # counted below
            for name, (format, ranks) in layers.items()
        )
        plan = rw.Plan(rows=rows, metric=metric, fingerprint=self.stats.sites.fingerprint)
        return recount(self.model, plan, self.stats.sites)

    def whole(self, params: int) -> float:
        """Parameters of the whole network as a share of the dense one's, if the replaced part has so many."""
        dense = rw.evaluate.size(self.model).params
        return (self.before + params) / (self.before + dense)

    def built(self, plan: rw.Plan, formats: Mapping[str, Format] | None = None) -> nn.Module:
        return rw.factorise(self.model, plan, self.stats, formats=formats)

    def accuracy(self, model: nn.Module) -> float:
        """Accuracy on the test set, in per cent."""
        answers = torch.cat([model(x).argmax(1) for x in self.inputs.split(self.batch)])
        return 100 * float((answers == self.labels).double().mean())


class LeNet5(nn.Sequential):
    """The convolutional network of the paper for MNIST, with tanh; its layer of 400 inputs and 120 outputs is `fc`."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.ZeroPad2d(2),
            *(nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
        )
        self.fc = nn.Linear(400, 120)
        self.tanh = nn.Tanh()
        self.classifier = nn.Linear(120, 10)


class SmallVGG(nn.Sequential):
    """3 x 3 convolutions and poolings, then two linear layers of 512 x 512 (4.5 MMACs for an image of 32 x 32)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (16, 32, 64, 128):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            channels = width
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.fc6 = nn.Linear(512, 512)
        self.relu6, self.drop6 = nn.ReLU(), nn.Dropout(0.3)
        self.fc7 = nn.Linear(512, 512)
        self.relu7, self.drop7 = nn.ReLU(), nn.Dropout(0.3)
        self.classifier = nn.Linear(512, 10)


def trained(
    model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, rate: float, flips: bool, file: Path | None
) -> nn.Module:
    """Train a network, or read it from a file that an earlier run wrote.

    Args:
        model: with its first weights.
        x, y: samples and labels.
        epochs: passes over them.
        rate: largest learning rate of Adam, which rises to it and falls to 0.
        flips: whether half of the images are mirrored.
        file: to read, or to write; None for neither.
    """
    if file is not None and file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    steps = epochs * -(-len(x) // 128)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    model.train()
    with torch.enable_grad():
        for _ in range(epochs):
            for chosen in torch.randperm(len(x)).split(128):
                images = x[chosen]
                if flips:
                    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
                optimiser.zero_grad()
                F.cross_entropy(model(images), y[chosen]).backward()
                optimiser.step()
                schedule.step()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), file)
    return model.eval()


def lenet300(networks: ModuleType, quick: bool, cache: Path | None) -> Case:
    """The first layer of the trained LeNet-300-100, 784 to 300."""
    x, y, own, answers = _mnist(networks, 2000 if quick else 10000)
    return Case(
        network="lenet300",
        model=networks.lenet300(),
        names=("fc1",),
        inputs=x,
        labels=y,
        calibration=own,
        answers=answers,
        ks=range(2, 61, 6 if quick else 2),
        grid=(16, 32) if quick else (12, 16, 24, 32),
    )


def lenet5(networks: ModuleType, quick: bool, cache: Path | None) -> Case:
    """The linear layer of LeNet-5, 400 to 120, trained on MNIST."""
    x, y, own, answers = _mnist(networks, 2000 if quick else 10000)
    train_x, train_y = _mnist(networks, 5000 if quick else 60000)[2:]
    file = None if cache is None else cache / f"lenet5{'-quick' if quick else ''}.safetensors"
    model = trained(LeNet5(), train_x, train_y, epochs=2 if quick else 5, rate=4e-3, flips=False, file=file)
    return after_convolutions(
        model,
        network="lenet5",
        names=("fc",),
        inputs=x,
        labels=y,
        calibration=own,
        answers=answers,
        ks=range(1, 49, 6 if quick else 1),
        grid=(8, 16) if quick else (6, 10, 16, 24),
    )


def vgg(networks: ModuleType, quick: bool, cache: Path | None) -> Case:
    """The two linear layers of 512 x 512 of a small VGG, trained on CIFAR-10 (lossy copies)."""
    (train, train_y), (test, test_y) = networks.cifar10_jpeg("train"), networks.cifar10_jpeg("test")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: 3000 if quick else None]
    test_order = torch.arange(0, len(test), 10 if quick else 1)
    train, train_y = networks.normalise_imagenet(train[order]), train_y[order]
    file = None if cache is None else cache / f"vgg{'-quick' if quick else ''}.safetensors"
    few = slice(0, 1000 if quick else 5000)
    model = trained(SmallVGG(), train, train_y, epochs=1 if quick else 3, rate=4e-3, flips=True, file=file)
    return after_convolutions(
        model,
        network="vgg",
        names=("fc6", "fc7"),
        inputs=networks.normalise_imagenet(test[test_order]),
        labels=test_y[test_order],
        calibration=train[few],
        answers=train_y[few],
        ks=(4, 16) if quick else (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128),
        grid=(8, 16) if quick else (8, 12, 16, 32),
    )


def after_convolutions(model: nn.Sequential, *, inputs: Tensor, calibration: Tensor, **options: Any) -> Case:
    """The linear layers of a network, on the features of its convolutions, which are computed once."""
    front, *rest = model.named_children()
    features = [torch.cat([front[1](x) for x in part.split(500)]) for part in (inputs, calibration)]
    return Case(
        model=nn.Sequential(OrderedDict(rest)).eval(),
        inputs=features[0],
        calibration=features[1],
        before=sum(parameter.numel() for parameter in front[1].parameters()),
        **options,
    )


def mobilenet_v2(networks: ModuleType, quick: bool, cache: Path | None) -> Case:
    """The classifier, 1280 to 1000; it calibrates on features of its own photos, labelled by the network itself."""
    task = TASKS["mobilenet_v2"](networks)
    model = task.model
    features: list[Tensor] = []
    handle = model.classifier.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    photos = torch.cat([task.calibration, task.images])
    own = torch.cat([model(task.normalise(part)).argmax(1) for part in photos.split(8)])
    handle.remove()
    x, count = torch.cat(features), len(task.calibration)
    return Case(
        network="mobilenet_v2",
        model=nn.Sequential(model.classifier),
        before=rw.evaluate.size(model).params - rw.evaluate.size(model.classifier).params,
        names=("0",),
        inputs=x[count:],
        labels=task.labels,
        calibration=x[:count],
        answers=own[:count],
        ks=range(16, 401, 64 if quick else 16),
        grid=(96,) if quick else (96, 160, 256),
        rates=((0.5,), (0.5,)) if quick else ((0.3, 0.5), (0.25, 0.5)),
        shares=(0.1, 0.3) if quick else (0.1, 0.15, 0.2, 0.3, 0.4, 0.5),  # a fit takes seconds
        lowest=10.0,  # the SVD comes within three at half of the parameters
    )


def tiny_darknet(networks: ModuleType, quick: bool, cache: Path | None) -> Case:
    """All 1 x 1 convolutions; channels are the neurons, and every layer keeps the same share of its full rank."""
    task = TASKS["tiny_darknet"](networks)
    layers = [(name, part) for name, part in task.model.named_modules() if isinstance(part, nn.Conv2d)]
    names = [name for name, layer in layers if layer.kernel_size == (1, 1)]
    few = slice(0, 24 if quick else 372)
    calibration = task.normalise(task.calibration[:64])
    answers = torch.cat([task.model(x).argmax(1) for x in calibration.split(8)])
    return Case(
        network="tiny_darknet, 1x1",
        model=task.model,
        names=tuple(names),
        inputs=task.normalise(task.images[few]),  # half of them: an evaluation takes seconds
        labels=task.labels[few],
        calibration=calibration,
        answers=answers,
        ks=(0.5,) if quick else (0.7, 0.8, 0.9, 0.95),
        grid=(0.6,) if quick else (0.9, 1.0),
        batch=8,
        rates=((0.5,), (0.5,)) if quick else ((0.3, 0.5), (0.5,)),
        shares=(0.9,) if quick else (0.6, 0.8, 0.9, 0.95, 0.99),
        lowest=10.0,  # no SVD with fewer parameters than the layers have comes within three
    )


CASES: dict[str, Callable[[ModuleType, bool, Path | None], Case]] = {
    "lenet300": lenet300,
    "lenet5": lenet5,
    "vgg": vgg,
    "mobilenet_v2": mobilenet_v2,
    "tiny_darknet": tiny_darknet,
}


def _mnist(networks: ModuleType, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Test images and labels, and some of the training images and labels."""
    (images, labels), (own, answers) = networks.mnist("test"), networks.mnist("train")
    few = torch.randperm(len(own), generator=torch.Generator().manual_seed(0))[:count]
    return networks.normalise_mnist(images), labels, networks.normalise_mnist(own[few]), answers[few]
