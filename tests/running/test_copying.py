"""Copies of networks: what shares memory shares it in the copy, and nothing is shared with the first network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rankwise.evaluate import size
from rankwise.running.copying import copied
from rankwise.running.state import storage_of


class Flat(nn.Module):
    """Parameters and a buffer that are parts of one block of memory, as flattened optimisers make them."""

    def __init__(self) -> None:
        super().__init__()
        block = torch.randn(24)
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)
        self.a.weight = nn.Parameter(block[:12].view(4, 3))
        self.b.weight = nn.Parameter(block[6:18].view(4, 3), requires_grad=False)
        self.register_buffer("end", block[12:])


def test_views_of_one_block_are_views_of_one_block() -> None:
    model = Flat()
    other = copied(model)
    for (name, tensor), mine in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, mine), name
        assert storage_of(tensor) != storage_of(mine), name
    assert (other.a.weight.requires_grad, other.b.weight.requires_grad) == (True, False)
    with torch.no_grad():
        other.a.weight[2, 0] = 7.0  # entry 6 of the block
    assert float(other.b.weight[0, 0]) == 7.0
    assert float(model.b.weight[0, 0]) != 7.0


def test_a_copy_that_is_made_in_inference_mode_can_be_trained() -> None:
    model = Flat()
    with torch.inference_mode():
        other = copied(model)
    other.a(torch.ones(1, 3)).sum().backward()
    assert other.a.weight.grad is not None


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_shared_by_memory_counts_once_in_the_copy(transposed: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    shared: Tensor = model[0].weight.data.T if transposed else model[0].weight.data
    model[1].weight = nn.Parameter(shared)
    assert size(copied(model)).params == size(model).params == 64 + 16
    assert copied(model)[1].weight.stride() == model[1].weight.stride()


def test_what_the_memo_names_is_not_copied() -> None:
    model = Flat()
    memo = {id(parameter): parameter for parameter in model.parameters()}
    other = copied(model, memo)
    assert other.a.weight is model.a.weight
    assert other.end is not model.end
