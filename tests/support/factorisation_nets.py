"""Networks that sequential factorisation must cope with, each with batches and what it is called with."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.nets import Residual, batches_of

V, E = 60, 16  # words and width of the language models


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 8)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class InPlace(nn.Module):
    """Activations overwritten in place, also one that a later addition reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1)
        self.conv3 = nn.Conv2d(12, 12, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y = self.conv2(self.act(x))  # x itself is rectified now
        y = F.relu_(y) + x
        y = y.mul_(0.5)
        return self.act(self.conv3(y)).mean((2, 3))


class Concat(nn.Module):
    """DenseNet's pattern: every layer reads all maps before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8 + 6 * i) for i in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(8 + 6 * i, 6, 3, padding=1, bias=False) for i in range(3)])
        self.head = nn.Linear(26, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            maps.append(conv(F.relu(norm(torch.cat(maps, 1)), inplace=True)))
        return self.head(torch.cat(maps, 1).mean((2, 3)))


class PreActivation(nn.Module):
    """Norm and ReLU before the convolutions, the shortcut from after them, nothing after the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(10) for _ in range(4)])
        self.convs = nn.ModuleList([nn.Conv2d(10, 10, 3, padding=1, bias=False) for _ in range(4)])
        self.shortcut = nn.Conv2d(10, 10, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in range(2):
            y = self.relu(self.norms[2 * block](x))
            kept = self.shortcut(y) if block == 0 else x
            y = self.convs[2 * block](y)
            y = self.convs[2 * block + 1](self.relu(self.norms[2 * block + 1](y)))
            x = kept + y
        return x.mean((2, 3))


class Keywords(nn.Module):
    """Called with keywords, one of them left out, one no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(16, 24)
        self.right = nn.Linear(12, 24)
        self.out = nn.Linear(24, 10)

    def forward(
        self, a: Tensor, b: Tensor | None = None, mask: Tensor | None = None, scale: float = 1.0, *, flip: bool = False
    ) -> dict[str, Tensor]:
        h = self.left(a)
        if b is not None:
            h = h + self.right(b) * scale
        if mask is not None:
            h = h * mask
        if flip:
            h = -h
        return {"logits": self.out(input=torch.tanh(h))}


class Pair(nn.Module):
    """Two tensors in, a tuple out; every layer sees sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(10, 24)
        self.mix = nn.Linear(24, 24)
        self.norm = nn.LayerNorm(24)
        self.out = nn.Linear(24, 6)

    def forward(self, x: Tensor, y: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.norm(self.embed(x) + self.embed_other(y))
        h = h + self.mix(F.gelu(h))
        return self.out(h), h.mean(1)

    def embed_other(self, y: Tensor) -> Tensor:
        return y.repeat(1, 1, 3)


class Branching(nn.Module):
    """Control flow that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 24)
        self.second = nn.Linear(24, 24)
        self.third = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        h = h + self.second(h) if x.mean() < 1000 else h
        return self.third(h)


class Grouped(nn.Module):
    """Groups, dilation, uneven strides and "same" padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, (3, 5), stride=(1, 2), padding=(1, 2), padding_mode="reflect")
        self.conv2 = nn.Conv2d(12, 16, 3, padding="same", dilation=2, groups=2)
        self.conv3 = nn.Conv2d(16, 12, (2, 4), padding="same")
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return self.head(x.mean((2, 3)))


class Signals(nn.Module):
    """Convolutions along time, with batch norm and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 12, 7, stride=2, padding=3)
        self.conv1 = nn.Conv1d(12, 12, 3, padding="same", dilation=2, bias=False)
        self.norm = nn.BatchNorm1d(12)
        self.conv2 = nn.Conv1d(12, 16, 4, padding=2, padding_mode="circular")
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.norm(self.conv1(x))
        return self.head(F.relu(self.conv2(x)).mean(2))


class Volumes(nn.Module):
    """Convolutions over space and time, with batch norm and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 8, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.conv1 = nn.Conv3d(8, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm3d(8)
        self.conv2 = nn.Conv3d(8, 24, (3, 2, 3), padding=(1, 0, 2), groups=2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.norm(self.conv1(x))
        return self.head(F.relu(self.conv2(x)).mean((2, 3, 4)))


class Decoder(nn.Module):
    """Transposed convolutions that overlap, with an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.up1 = nn.ConvTranspose2d(12, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.up2 = nn.ConvTranspose2d(12, 10, (4, 3), stride=2, padding=1, output_padding=(0, 1), groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(x))
        x = x + self.norm(self.up1(x))
        return self.up2(F.relu(x))


class Words(nn.Module):
    """Words and places looked up, the first with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(60, 16, padding_idx=0), nn.Embedding(12, 16)
        self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(F.gelu(self.hidden(x)))


class Language(nn.Module):
    """Predicts the next word from one word."""

    def __init__(self, bias: bool = False, tied: bool = True) -> None:
        super().__init__()
        self.words, self.hidden = nn.Embedding(V, E, padding_idx=0), nn.Linear(E, E)
        self.norm, self.head = nn.LayerNorm(E), nn.Linear(E, V, bias)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        return self.head(self.norm(x + F.gelu(self.hidden(x))))


class Draws(nn.Module):
    """Layers with noise of one kind between them."""

    def __init__(self, noise: nn.Module) -> None:
        super().__init__()
        self.first, self.noise, self.last = nn.Linear(24, 24), noise, nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.noise(torch.tanh(self.first(x)))))


class Normal(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h + torch.randn_like(h)


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.randn(h.shape, generator=self.generator)


class Dropped(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return F.dropout(h, 0.5, training=True)


class Signed(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h * random.choice((-1.0, 1.0))


class Shuffled(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h[torch.rand(len(h)).argsort()]


NOISES: dict[str, Callable[[], nn.Module]] = {
    "normal": Normal,
    "a generator of its own": OwnGenerator,
    "dropout that stays on": Dropped,
    "signs from Python": Signed,
    "samples in random order": Shuffled,
}


def tokens() -> list[Tensor]:
    """Some words are frequent, most are rare, the last ten never come."""
    generator = torch.Generator().manual_seed(0)
    return [(50 * torch.rand(32, 12, generator=generator) ** 3).long() for _ in range(4)]


Case = tuple[Callable[[], nn.Module], Callable[[], list[Any]]]


def images() -> list[Tensor]:
    return batches_of(8, 3, 10, 10, count=4)


CASES: dict[str, Case] = {
    "chain": (Chain, lambda: batches_of(64, 20)),
    "in place": (InPlace, images),
    "residual": (Residual, images),
    "concat": (Concat, images),
    "pre-activation": (PreActivation, images),
    "groups": (Grouped, images),
    "words": (Words, tokens),
    "decoder": (Decoder, images),
    "signals": (Signals, lambda: batches_of(8, 3, 40)),
    "volumes": (Volumes, lambda: batches_of(8, 3, 4, 10, 8)),
    "keywords": (Keywords, lambda: [{"a": a, "b": a[:, :12].cos()} for a in batches_of(64, 16)]),
    "optional left out": (Keywords, lambda: [{"a": a, "scale": 0.5, "flip": True} for a in batches_of(64, 16)]),
    "tuples": (Pair, lambda: [(x, x[..., :8].sin()) for x in batches_of(32, 6, 10)]),
    "positional options": (Keywords, lambda: [(a, a[:, :12].cos(), None, 0.7) for a in batches_of(64, 16)]),
}
