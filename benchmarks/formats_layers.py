"""Layers to compare formats on: real layers with the statistics of real images, and synthetic layers.

Letters: T outputs, C channels, K terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import networks
from benchmarks.tasks import TASKS
from rankwise.formats.ladders import split_number
from rankwise.formats.weights import site_weight
from rankwise.linalg.metric import Identity, Metric
from rankwise.network.site import Site

# Sites of each network: every kind of 3 x 3 kernel of ResNet-20; two 3 x 3 and a 1 x 1 of the others.
SITES: dict[str, Sequence[str]] = {
    "resnet20": (
        "conv1",
        "layer1.0.conv1",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer3.0.conv1",
        "layer3.0.conv2",
    ),
    "tiny_darknet": ("features.unit4.conv", "features.unit12.conv", "features.unit13.conv"),
    "resnet50v2_trunk": ("stage2.1.conv2", "stage3.1.conv2", "stage3.1.conv1"),
}
QUICK_SITES: dict[str, Sequence[str]] = {"resnet20": ("layer1.0.conv1",)}
# Outputs and channels of the synthetic layers.
SIZES = (128, 256, 512)
QUICK_SIZES = (8,)
# Calibration images of each network.
IMAGES = {"resnet20": 1024, "tiny_darknet": 128, "resnet50v2_trunk": 128}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution with one group, and both metrics.

    Attributes:
        network, name: its origin.
        weight: T x C x kh x kw, float64.
        input: the covariance of its inputs.
    """

    network: str
    name: str
    site: Site
    weight: Tensor
    input: Metric

    def metric(self, name: str) -> Metric:
        """ "input" or "weight"."""
        return self.input if name == "input" else Identity(self.site.in_features)

    def error(self, metric: str, replacement: Tensor) -> float:
        """Relative squared error of a kernel of the same shape, in per cent."""
        W_TD = self.weight.flatten(1)
        return 100 * self.metric(metric).energy(W_TD - replacement.flatten(1)) / self.metric(metric).energy(W_TD)


def real(sites: dict[str, Sequence[str]], wanted: Sequence[str], quick: bool, seed: int) -> Iterator[Layer]:
    """Layers of the trained networks whose network or name contains one of the words."""
    for network, names in sites.items():
        chosen = [name for name in names if is_wanted(network, name, wanted)]
        if not chosen:
            continue
        task = TASKS[network](networks())
        count = 64 if quick else IMAGES[network]
        batches = [task.normalise(chunk) for chunk in task.calibration[:count].split(task.batch)]
        stats = rw.collect(task.model, batches, only=chosen, seed=seed)
        for name in chosen:
            site = stats.sites[name]
            weight, metric = site_weight(task.model, site), stats[name].metrics()[0]
            yield Layer(network=network, name=name, site=site, weight=weight, input=metric)


def synthetic(sizes: Sequence[int], wanted: Sequence[str], seed: int) -> Iterator[Layer]:
    """Square 3 x 3 layers whose spectrum falls along every mode, on smooth, correlated, rectified maps."""
    for size in sizes:
        name = f"{size}x{size}x3x3"
        if not is_wanted("synthetic", name, wanted):
            continue
        generator = torch.Generator().manual_seed(seed)
        convolution = nn.Conv2d(size, size, 3, padding=1, bias=False)
        with torch.no_grad():
            convolution.weight.copy_(spectral(size, generator))
        model = nn.Sequential(convolution).eval()
        stats = rw.collect(model, maps(size, generator), seed=seed)
        site, metric = stats.sites["0"], stats["0"].metrics()[0]
        yield Layer(network="synthetic", name=name, site=site, weight=site_weight(model, site), input=metric)


def forms(layer: Layer) -> list[str]:
    """Plain formats, and the same with settings that suit the layer."""
    T, C, *kernel = layer.site.weight_shape
    pair, three = (
        f"outputs={_text(split_number(T, parts))},inputs={_text(split_number(C, parts)[::-1])}" for parts in (2, 3)
    )
    found = ["svd", "tt", f"tt:{pair}", "stt", "stt:slices=4", "stt:cores=all", "stt:slices=4,cores=all"]
    found += [f"stt:cores=all,{pair}"]
    if math.prod(kernel) == 1:
        return [*found, f"tt:{three}", "kronecker", f"kronecker:{pair}"]
    trees, kernels = ("tc/hw", "tc/q"), ("1x1", "3x1", "1x3")
    found += ["ht", *(f"ht:tree={tree}" for tree in trees)]
    return [*found, "kronecker", *(f"kronecker:kernel={size}" for size in kernels)]


def _text(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def is_wanted(network: str, name: str, words: Sequence[str]) -> bool:
    """Whether the layer is selected; without words all are."""
    return not words or any(word in f"{network}.{name}" for word in words)


def spectral(size: int, generator: torch.Generator) -> Tensor:
    """A kernel whose unfoldings have falling singular values, in random bases; no exact form of low rank."""
    core = torch.randn(size, size, 9, generator=generator, dtype=torch.float64)
    fall = torch.arange(1, size + 1, dtype=torch.float64) ** -0.6
    core *= fall[:, None, None] * fall[:, None] * torch.arange(1, 10, dtype=torch.float64) ** -0.5
    bases = [_basis(n, generator) for n in (size, size, 9)]
    return torch.einsum("rsp,tr,cs,qp->tcq", core, *bases).reshape(size, size, 3, 3)


def terms(size: int, count: int, generator: torch.Generator) -> Tensor:
    """A sum of `count` random rank-one kernels, the k-th of norm k^-0.7, and noise of 5 % of its norm."""
    factors = [torch.randn(n, count, generator=generator, dtype=torch.float64) for n in (size, size, 3, 3)]
    factors = [factor / torch.linalg.vector_norm(factor, dim=0) for factor in factors]
    fall = torch.arange(1, count + 1, dtype=torch.float64) ** -0.7
    W = torch.einsum("tk,ck,hk,wk,k->tchw", *factors, fall)
    noise = torch.randn(W.shape, generator=generator, dtype=torch.float64)
    return W + 0.05 * torch.linalg.vector_norm(W) / torch.linalg.vector_norm(noise) * noise


def maps(size: int, generator: torch.Generator) -> list[Tensor]:
    """Batches of feature maps: noise smoothed over the positions, mixed over the channels, rectified."""
    positions = 16
    images = max(16, 2 * 9 * size // positions**2)
    smooth = nn.AvgPool2d(3, 1)(torch.randn(images, size, positions + 2, positions + 2, generator=generator))
    mixing = torch.randn(size, size, generator=generator) * torch.arange(1, size + 1) ** -0.5
    mixed = torch.einsum("cd,ndhw->nchw", mixing, smooth)
    return list((mixed / mixed.std() + 0.2).relu().split(16))


def _basis(size: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
