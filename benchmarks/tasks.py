"""The trained networks of the benchmarks, each with calibration, test and agreement images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Task:
    """A network and its images, as uint8.

    Attributes:
        calibration: unlabelled images.
        images, labels: the test set.
        further: more unlabelled images for agreement with the dense network; the test images if there are none.
        keeps: fractions of the MACs to measure.
    """

    model: nn.Module
    normalise: Callable[[Tensor], Tensor]
    calibration: Tensor
    images: Tensor
    labels: Tensor
    further: Tensor
    keeps: tuple[float, ...]
    batch: int

    def batches(self, device: str = "cpu") -> list[Tensor]:
        """Normalised calibration batches."""
        return [self.normalise(chunk).to(device) for chunk in self.calibration.split(self.batch)]

    @torch.no_grad()
    def answers(self, model: nn.Module, images: Tensor) -> Tensor:
        """The model's first answer for each image, on the CPU."""
        device = next(model.parameters()).device
        chunks = images.split(4 * self.batch)
        return torch.cat([model(self.normalise(chunk).to(device)).argmax(1).cpu() for chunk in chunks])


def _cifar(networks: ModuleType, name: str) -> Task:
    images, labels = networks.cifar10_lossless("test")
    return Task(
        model=getattr(networks, name)(),
        normalise=networks.normalise_imagenet,
        calibration=networks.cifar10_lossless("train")[0][:1024],
        images=images,
        labels=labels,
        further=networks.cifar10_jpeg("test")[0],
        keeps=(0.7, 0.5, 0.3),
        batch=64,
    )


def _photos(networks: ModuleType, name: str, normalise: str, keeps: tuple[float, ...]) -> Task:
    images, labels = networks.imagenet_photos()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    calibration, test = order[:256], order[256:]
    test_images = images[test]
    return Task(
        model=getattr(networks, name)(),
        normalise=getattr(networks, normalise),
        calibration=images[calibration],
        images=test_images,
        labels=labels[test],
        further=test_images,
        keeps=keeps,
        batch=8,
    )


def _imagenette(networks: ModuleType) -> Task:
    train, _ = networks.imagenette("train")
    images, labels = networks.imagenette("val")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return Task(
        model=networks.resnet50v2_trunk(),
        normalise=networks.normalise_imagenet,
        calibration=train[order[:256]],
        images=images,
        labels=labels,
        further=images,
        keeps=(0.7, 0.5, 0.3),
        batch=8,
    )


TASKS: dict[str, Callable[[ModuleType], Task]] = {
    "resnet20": lambda networks: _cifar(networks, "resnet20"),
    "resnet32": lambda networks: _cifar(networks, "resnet32"),
    "tiny_darknet": lambda networks: _photos(networks, "tiny_darknet", "normalise_unit", (0.7, 0.5, 0.3)),
    "resnet50v2_trunk": _imagenette,
    "mobilenet_v2": lambda networks: _photos(networks, "mobilenet_v2", "normalise_symmetric", (0.95, 0.9, 0.8)),
}
