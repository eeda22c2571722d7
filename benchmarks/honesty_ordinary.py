"""Ordinary networks for the honesty benchmark."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.honesty_case import Case, images, rows, tokens


class Residual(nn.Module):
    """A block of a ResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.first(x)))
        return torch.relu(x + self.norm2(self.second(y)))


class UNet(nn.Module):
    """A U-Net: down, up, and a link between both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.up, self.out = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.relu(self.down(x))
        return self.out(torch.cat([wide, self.up(torch.relu(self.middle(wide)))], 1))


class Recurrent(nn.Module):
    """An LSTM between an embedding and a head over the vocabulary."""

    def __init__(self, cell: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.words, self.cell = nn.Embedding(60, 24), cell(32, 32, batch_first=True)
        self.into, self.mix, self.head = nn.Linear(24, 32), nn.Linear(32, 32), nn.Linear(32, 60)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.cell(torch.tanh(self.into(self.words(x))))
        return self.head(torch.tanh(self.mix(y)))


class Language(nn.Module):
    """A transformer of two blocks, tied or not."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(80, 32), nn.Embedding(24, 32)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(2))
        self.mix, self.head = nn.Linear(32, 32), nn.Linear(32, 80, bias=not tied)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        return self.head(torch.tanh(self.mix(h)))


class Two(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(24, 32), nn.Linear(40, 32), nn.Linear(64, 48)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        joined = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(y))], -1)
        return {"sum": self.c(joined), "joined": joined}


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def mlp(width: int = 48) -> nn.Module:
    hidden = [part for _ in range(2) for part in (nn.Linear(width, width), nn.ReLU())]
    return chain(nn.Linear(24, width), nn.ReLU(), *hidden, nn.Linear(width, 10))


def lenet() -> nn.Module:
    first = [nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    return chain(*first, nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10))


def convolutions(dims: int, **options: Any) -> nn.Module:
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return chain(layer(8, 24, 3, padding=1), nn.ReLU(), layer(24, 24, 3, **options), nn.ReLU(), layer(24, 8, 1))


def depthwise() -> nn.Module:
    return chain(nn.Conv2d(8, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 24, 1))


def autoencoder() -> nn.Module:
    return chain(
        nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 12), nn.Tanh(), nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 64)
    )


def _case(name: str, build: Any, batch: Any, **options: Any) -> Case:
    return Case(name=name, kind="ordinary", build=build, batch=batch, **options)


CASES = (
    _case("MLP", mlp, rows(64, 24)),
    _case("MLP in float64", lambda: mlp().double(), lambda g: rows(64, 24)(g).double()),
    _case("MLP on sequences", mlp, rows(16, 9, 24)),
    _case("LeNet", lenet, images(16, 1, 28, 28)),
    _case(
        "ResNet",
        lambda: chain(nn.Conv2d(3, 16, 3), Residual(16), Residual(16), nn.Conv2d(16, 8, 1)),
        images(8, 3, 12, 12),
    ),
    _case("U-Net", UNet, images(8, 3, 16, 16)),
    _case("LSTM", Recurrent, tokens(16, 12, 60), budgets=({"macs": 0.95}, {"macs": 0.9})),
    _case("GRU", lambda: Recurrent(nn.GRU), tokens(16, 12, 60), budgets=({"macs": 0.95}, {"macs": 0.9})),
    _case("1-D convolutions", lambda: convolutions(1, stride=2), images(16, 8, 32)),
    _case("2-D, dilated", lambda: convolutions(2, dilation=2, padding="same"), images(8, 8, 12, 12)),
    _case("2-D, circular", lambda: convolutions(2, padding=1, padding_mode="circular"), images(8, 8, 12, 12)),
    _case("3-D convolutions", lambda: convolutions(3, stride=(1, 2, 2)), images(4, 8, 6, 8, 8)),
    _case("grouped", lambda: convolutions(2, groups=3), images(8, 8, 12, 12)),
    _case("depthwise", depthwise, images(8, 8, 10, 10)),
    _case(
        "transposed",
        lambda: chain(nn.ConvTranspose2d(16, 24, 3, 2), nn.ReLU(), nn.Conv2d(24, 16, 3)),
        images(8, 16, 6, 6),
    ),
    _case("autoencoder", autoencoder, rows(512, 64)),
    _case("language model", lambda: Language(False), tokens(16, 12, 80), budgets=({"params": 0.98}, {"params": 0.97})),
    _case(
        "tied language model", lambda: Language(True), tokens(16, 12, 80), budgets=({"params": 0.98}, {"params": 0.97})
    ),
    _case("named outputs", Two, lambda g: (rows(32, 24)(g), rows(32, 40)(g))),
    _case(
        "bilinear head", lambda: chain(nn.Linear(32, 48), nn.GELU(), nn.LayerNorm(48), nn.Linear(48, 32)), rows(64, 32)
    ),
)
