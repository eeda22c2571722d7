"""What is stored: non-zeros and bytes, with those of the indices."""

from __future__ import annotations

import pytest
import torch
from support.nets import make
from torch import nn

import rankwise as rw
from rankwise.evaluate import size, sparse_bytes, storage


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 5))


def test_sparse_low_rank_is_stored_without_zeros() -> None:
    """r = 4 for all of 30 inputs and 40 outputs, s = 6 between 15 and 20 of them; an index takes four bytes."""
    model = make(net)
    sites = rw.find(model, torch.zeros(1, 30))
    plan = rw.choose(model, sites, keep={"params": 1.0}, metric="weight", pin={"0": ("slr", (4, 6, 15, 20))})
    small = rw.factorise(model, plan, sites)
    stored = storage(small)
    (layer,) = stored.layers
    factors = 4 * (30 + 40) + 6 * (15 + 20)
    assert (layer.name, layer.format, layer.zeros) == ("0", "slr", 0)
    assert layer.nonzeros == factors + 40
    assert layer.index_bytes == 4 * (15 + 40)
    assert layer.bytes == 4 * layer.nonzeros + layer.index_bytes
    assert stored.bytes == size(small).bytes == layer.bytes + 4 * (40 * 5 + 5) == plan.planned["bytes"]
    assert stored.nonzeros == layer.nonzeros + 205
    assert stored.index_bytes == layer.index_bytes


def test_zeros_are_counted_apart() -> None:
    model = make(net)
    with torch.no_grad():
        model[2].weight[0] = 0  # type: ignore[index]
    stored = storage(model)
    assert stored.layers == ()
    assert stored.nonzeros == size(model).params - 40


@pytest.mark.parametrize("dtype, expected", [(torch.float32, 6 * 8 + 4 * 5), (torch.float16, 6 * 6 + 4 * 5)])
def test_compressed_sparse_rows(dtype: torch.dtype, expected: int) -> None:
    weight = torch.zeros(4, 9, dtype=dtype)
    weight[1, :3], weight[3, 5:8] = 1, 2
    assert sparse_bytes(weight) == expected
