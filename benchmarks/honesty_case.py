"""Cases of the honesty benchmark, and data with structure: few directions and noise.

Letters: B samples, D features, R directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = Callable[[torch.Generator], Any]
BUDGETS: tuple[Mapping[str, float], ...] = ({"macs": 0.8}, {"macs": 0.6})


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network, its data, and what may be said of it.

    Attributes:
        name: of the network.
        kind: "ordinary", "torchvision", "transformers", or a letter of the kinds of odd hosts.
        build: makes it; seeded by the benchmark.
        batch: makes one batch of inputs from a generator.
        batches: calibration batches.
        budgets: two of them.
        options: further arguments of `compress`, such as the layers to touch where all of them would take long.
        refused: words that a refusal has to contain; None where the network must be compressed.
        whole: whether MACs are counted for a whole batch, because one sample is none.
        routed: whether rows go where their values send them, so that the counts of both networks are of other rows.
        before: what a user does to the network before he hands it over.
        quick: whether the short run has it.
    """

    name: str
    kind: str
    build: Callable[[], nn.Module]
    batch: Batch
    batches: int = 4
    budgets: tuple[Mapping[str, float], ...] = BUDGETS
    options: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] | None = None
    whole: bool = False
    routed: bool = False
    before: Callable[[nn.Module, Any], None] | None = None
    quick: bool = True


def rows(*shape: int, directions: int = 6) -> Batch:
    """B x ... x D: vectors near a few directions, the same in every batch."""

    def make(generator: torch.Generator) -> Tensor:
        fixed = torch.Generator().manual_seed(shape[-1])
        basis_RD = torch.randn(directions, shape[-1], generator=fixed)
        coordinates = torch.randn(*shape[:-1], directions, generator=generator)
        return coordinates @ basis_RD / directions**0.5 + 0.3 * torch.randn(*shape, generator=generator)

    return make


def images(*shape: int) -> Batch:
    """B x C x spatial: smooth patterns and noise."""

    def make(generator: torch.Generator) -> Tensor:
        coarse = torch.randn(*shape[:2], *(max(size // 4, 1) for size in shape[2:]), generator=generator)
        modes = {1: "linear", 2: "bilinear", 3: "trilinear"}
        smooth = F.interpolate(coarse, size=shape[2:], mode=modes[len(shape) - 2])
        return smooth + 0.3 * torch.randn(*shape, generator=generator)

    return make


def tokens(samples: int, length: int, vocabulary: int, least: int = 2) -> Batch:
    """B x T: words; a few of them are most of the text, and every second one follows from the one before it."""

    def make(generator: torch.Generator) -> Tensor:
        frequency = 1 / torch.arange(1, vocabulary - least + 1)
        drawn = torch.multinomial(frequency, samples * length, replacement=True, generator=generator)
        drawn = drawn.view(samples, length)
        drawn[:, 1::2] = (3 * drawn[:, : 2 * (length // 2) : 2] + 1) % (vocabulary - least)
        return drawn + least

    return make


def named(**parts: Batch) -> Batch:
    """Batches of keyword arguments."""
    return lambda generator: {name: part(generator) for name, part in parts.items()}


def together(*parts: Batch) -> Batch:
    """Batches of positional arguments."""
    return lambda generator: tuple(part(generator) for part in parts)
