"""Trained networks on their own data: what is promised about accuracy, and odd layers in the wild."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from support.nets import chains, outputs, unchanged
from torch import Tensor, nn

import rankwise as rw


def calibration(networks: ModuleType, images: int, normalise: str = "normalise_imagenet") -> list[Tensor]:
    photos, _ = networks.cifar10_lossless("train")
    return list(getattr(networks, normalise)(photos[:images]).split(64))


class Trained(NamedTuple):
    """ResNet-20, its calibration data and their statistics."""

    model: nn.Module
    data: list[Tensor]
    stats: rw.Statistics


@pytest.fixture(scope="module")
def resnet20(networks: ModuleType) -> Trained:
    """91.5 % dense. 256 unlabelled images."""
    model, data = networks.resnet20(), calibration(networks, 256)
    return Trained(model, data, rw.collect(model, data))


def assert_counts(small: nn.Module, report: rw.CompressReport, example: Tensor) -> None:
    sites = rw.find(small, example)
    planned = report.plan.planned
    assert (sites.total_params, sites.total_macs) == (planned["params"], planned["macs"])
    assert (report.compressed.params, report.compressed.macs, report.compressed.bytes) == (
        planned["params"],
        planned["macs"],
        planned["bytes"],
    )
    ((unit, amount),) = report.plan.keep.items()
    assert planned[unit] <= amount * report.plan.dense[unit]


@pytest.mark.long
def test_resnet20_keeps_its_accuracy_at_half_the_macs(networks: ModuleType, resnet20: Trained) -> None:
    """On a fifth of the test images; no gradient step."""
    model, data, stats = resnet20
    images, labels = (part[::5] for part in networks.cifar10_lossless("test"))
    top1 = {}
    for method in ("one-shot", "sequential"):
        with unchanged(model):
            small, report = rw.compress(model, data, keep={"macs": 0.5}, method=method, stats=stats)
        assert_counts(small, report, data[0][:1])
        assert all(report.plan[name].format != "dense" for name in chains(small))
        top1[method] = networks.top_k(small.eval(), images, labels, networks.normalise_imagenet)["top-1 %"]
    assert top1["sequential"] >= 88
    assert top1["one-shot"] >= 80


@pytest.mark.long
def test_sequential_agrees_more_with_the_dense_network(networks: ModuleType, resnet20: Trained) -> None:
    """At keep 0.3, on images of another source than the calibration's: lossy copies."""
    model, data, stats = resnet20
    photos, _ = networks.cifar10_jpeg("test")
    fresh = list(networks.normalise_imagenet(photos[torch.arange(0, 10_000, 50)]).split(100))
    agreement = {}
    for method in ("one-shot", "sequential"):
        small, report = rw.compress(model, data, keep={"macs": 0.3}, method=method, stats=stats)
        assert_counts(small, report, data[0][:1])
        agreement[method] = rw.evaluate.agreement(model, small, fresh)
    assert agreement["sequential"] >= agreement["one-shot"]
    assert agreement["sequential"] >= 50


@pytest.mark.parametrize("method", ["one-shot", "sequential"])
def test_lenet300(networks: ModuleType, method: str) -> None:
    """97.87 % dense."""
    model = networks.lenet300()
    train, _ = networks.mnist("train")
    images, labels = (part[:2000] for part in networks.mnist("test"))
    data = list(networks.normalise_mnist(train[:1024]).split(128))
    with unchanged(model):
        small, report = rw.compress(model, data, keep={"params": 0.3}, method=method)
    assert_counts(small, report, data[0][:1])
    dense = networks.top_k(model, images, labels, networks.normalise_mnist)["top-1 %"]
    assert networks.top_k(small, images, labels, networks.normalise_mnist)["top-1 %"] >= dense - 2


@pytest.mark.long
def test_tiny_darknet_with_few_images(networks: ModuleType) -> None:
    """Far fewer rows than inputs in the deep layers, 1000 classes from six photos."""
    model = networks.tiny_darknet()
    photos, _ = networks.imagenet_photos()
    data = list(networks.normalise_unit(photos[:6]).split(3))
    stats = rw.collect(model, data)
    for method in ("one-shot", "sequential"):
        with unchanged(model):
            small, report = rw.compress(model, data, keep={"macs": 0.7}, method=method, stats=stats)
        assert_counts(small, report, data[0][:1])
        dense, got = outputs(model, data), outputs(small, data)
        assert got.isfinite().all()
        assert float((got - dense).norm() / dense.norm()) < 0.5


@pytest.mark.slow
def test_resnet8_wide_with_uneven_padding_and_pixels(networks: ModuleType) -> None:
    """TensorFlow's "same" padding before strided convolutions, biases, inputs from 0 to 255. 91.5 % dense."""
    model = networks.resnet8_wide()
    data = calibration(networks, 256, "unscaled")
    images, labels = networks.cifar10_lossless("test")
    stats = rw.collect(model, data)
    top1 = {}
    for method in ("one-shot", "sequential"):
        with unchanged(model):
            small, report = rw.compress(model, data, keep={"macs": 0.5}, method=method, stats=stats)
        assert_counts(small, report, data[0][:1])
        top1[method] = networks.top_k(small, images, labels, networks.unscaled)["top-1 %"]
    assert top1["sequential"] >= 85
    assert top1["sequential"] >= top1["one-shot"]
