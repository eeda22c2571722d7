"""Inputs of layers: what is seen of one, and random ones like it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rankwise.latency.layers import Input


@pytest.mark.parametrize(
    "x, last",
    [
        (torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), True),
        (torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d), True),
        (torch.randn(2, 3, 4, 5), False),
        (torch.randn(4, 5), False),
    ],
)
def test_random_inputs_have_shape_type_and_layout(x: Tensor, last: bool) -> None:
    seen = Input.of(x)
    assert seen == Input(shape=tuple(x.shape), dtype=x.dtype, channels_last=last)
    assert Input.of(seen.tensor(nn.Identity())) == seen
    assert torch.equal(seen.tensor(nn.Identity()), seen.tensor(nn.Identity()))


def test_inputs_of_an_embedding_are_rows_of_it() -> None:
    rows = Input.of(torch.tensor([[0, 5]])).tensor(nn.Embedding(3, 2))
    assert rows.shape == (1, 2)
    assert 0 <= int(rows.min()) <= int(rows.max()) < 3
