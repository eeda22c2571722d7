"""Random generators of several networks."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.running.pristine import pristine
from rankwise.running.randomness import Randomness


class Drawing(nn.Module):
    """Draws a number from everything that there is."""

    def __init__(self) -> None:
        super().__init__()
        self.torch = torch.Generator().manual_seed(3)
        self.python = random.Random(4)
        self.numpy, self.old_numpy = np.random.default_rng(5), np.random.RandomState(6)

    def forward(self) -> list[float]:
        own = [float(torch.rand(1, generator=self.torch)), self.python.random(), self.numpy.random()]
        return [*own, float(self.old_numpy.rand()), float(torch.rand(1)), random.random(), float(np.random.rand())]


def test_two_networks_draw_the_same_after_a_seed() -> None:
    dense = Drawing()
    small = copy.deepcopy(dense)
    randomness = Randomness(dense, small)
    drawn = {}
    for seed in (7, 8, 7):
        randomness.seed(seed)
        first, repeated = dense(), []
        randomness.seed(seed)
        repeated = small()
        assert first == repeated
        assert drawn.setdefault(seed, first) == first
    assert all(a != b for a, b in zip(drawn[7], drawn[8], strict=True))


def test_a_state_is_put_into_all_networks() -> None:
    dense = Drawing()
    small = copy.deepcopy(dense)
    randomness = Randomness(dense, small)
    dense()
    state = randomness.state()
    first = dense()
    assert randomness.drawn_since(state)
    randomness.restore(state)
    assert not randomness.drawn_since(state)
    assert small() == first


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random, np.random.rand])
def test_every_global_generator_is_seen(draw: object) -> None:
    randomness = Randomness(nn.Linear(1, 1))
    with randomness.kept():
        state = randomness.state()
        assert callable(draw)
        draw()
        assert randomness.drawn_since(state)


def test_a_model_is_handed_back_with_its_generators() -> None:
    model = Drawing()
    before = Randomness(model).state()
    with pristine(model):
        first = model()
    assert not Randomness(model).drawn_since(before)
    assert model() == first
