"""The benchmark of healing on a small network: one row for each variant, with figures before and after."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks.heal import COLUMNS, VARIANTS, chosen, measure
from benchmarks.tasks import Task
from support.nets import Residual, make

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_variant_gives_a_row() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (120, 3, 16, 16), dtype=torch.uint8)
    dense = make(Residual)
    task = Task(
        model=dense,
        normalise=lambda x: x.float() / 128 - 1,
        calibration=images[:32],
        images=images[:40],
        labels=torch.randint(6, (40,)),
        further=images[:40],
        keeps=(0.5,),
        batch=16,
    )
    rows = measure("resnet20", task, images[40:], "default", 0.4, list(VARIANTS), {"epochs": 1}, seed=0)
    assert [row["variant"] for row in rows] == list(VARIANTS)
    for row in rows:
        assert set(COLUMNS) <= set(row)
        assert row["held_out_after"] <= row["held_out_before"]
        assert row["steps"] > 0
        assert row["images"] == 72
        assert row["macs_ratio"] <= 0.4
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))


def test_chosen_images_begin_with_the_first() -> None:
    images = torch.arange(10)
    assert chosen(images, None, 4, 0).tolist() == list(range(10))
    assert chosen(images, 3, 4, 0).tolist() == [0, 1, 2]
    few = chosen(images, 6, 4, 0).tolist()
    assert few[:4] == [0, 1, 2, 3]
    assert set(few[4:]) < set(range(4, 10))
