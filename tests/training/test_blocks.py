"""Blocks are found, and learn each from its own counterpart alone."""

from __future__ import annotations

import copy

import pytest
import torch
from support.nets import unchanged
from support.training_nets import pair, residual
from torch import nn

import rankwise as rw
from rankwise.training import BlockReconstruction, find_blocks

pytestmark = pytest.mark.usefixtures("one_thread")


class Staged(nn.Module):
    """A stem, two stages of two blocks, and a head that a list holds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.stages = nn.Sequential(nn.Sequential(self.block(), self.block()), nn.Sequential(self.block()))
        self.heads = nn.ModuleList([nn.Linear(8, 8)])

    @staticmethod
    def block() -> nn.Module:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + self.inner(x)

        return Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.heads[0](self.stages(self.stem(x)))


def test_blocks_of_a_staged_network() -> None:
    """A Sequential inside a block is no place to look for blocks; the stem is one of its own."""
    dense = Staged()
    sites = [name for name, module in dense.named_modules() if isinstance(module, nn.Linear)]
    small, _ = rw.compress(dense, [torch.randn(32, 8)], keep={"params": 1.0}, pin=dict.fromkeys(sites, "svd:2"))
    assert find_blocks(small) == ["stem", "stages.0.0", "stages.0.1", "stages.1.0", "heads.0"]


def test_the_same_network_has_no_loss() -> None:
    dense, small, x = residual()
    blocks = BlockReconstruction(dense, copy.deepcopy(dense), find_blocks(small))
    assert blocks(x).item() == 0


def test_loss_and_gradient_of_each_block_by_hand() -> None:
    dense, small, x = pair()
    names = find_blocks(small)
    with unchanged(dense):
        loss = BlockReconstruction(dense, small)(x)
    loss.backward()
    found = [parameter.grad.clone() for parameter in small.parameters() if parameter.grad is not None]
    small.zero_grad()
    expected, theirs, ours = torch.zeros(()), x, x
    for number, (large, part) in enumerate(zip(dense, small, strict=True)):
        theirs, ours = large(theirs).detach(), part(ours)
        if str(number) in names:
            expected = expected + (ours - theirs).square().sum() / theirs.square().sum()
        ours = ours.detach()
    torch.testing.assert_close(loss, expected)
    expected.backward()
    by_hand = [parameter.grad for parameter in small.parameters() if parameter.grad is not None]
    assert len(found) == len(by_hand) > 2
    torch.testing.assert_close(found, by_hand)


def test_a_step_brings_blocks_closer_in_place_operations_or_not() -> None:
    dense, small, x = residual()
    blocks = BlockReconstruction(dense, small)
    assert blocks.blocks == find_blocks(small)
    optimiser = torch.optim.Adam(small.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        losses.append(loss := blocks(x))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())


def test_errors() -> None:
    dense, small, _ = pair()
    with pytest.raises(ValueError, match="no module 'nowhere'"):
        BlockReconstruction(dense, small, ["nowhere"])
    with pytest.raises(ValueError, match="gives no block"):
        BlockReconstruction(dense, dense)
