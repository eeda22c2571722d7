"""All blocks of a network learn side by side, each from its counterpart in the dense network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.low_rank import LowRank, is_factorised
from ..network.replacing import module_at
from ..running.calling import call, map_tensors, tensors_in
from ..running.exclusive import exclusive, own_thread
from ..running.guards import unwrap
from ..running.pristine import evaluating, rows_kept
from .modes import recorded, relative_error


class BlockReconstruction:
    """Distance of a network's blocks from the dense network's, with gradients that stay inside each block.

        sum_b ||D_b - S_b(x_b)||^2 / ||D_b||^2

    D_b is the output of the dense network's block b, x_b the output of the small network's blocks before it, without
    gradient. One forward of both networks and one backward train all blocks; as each sees the errors before it, it
    learns to repair them.

    Args:
        dense: the network to follow; it runs in eval mode and is not changed.
        small: the factorised network.
        blocks: qualified names of modules that both have, or "auto"; see `find_blocks`.

    Raises:
        ValueError: for unknown names, or if there is no factorised block.

    Example:
        >>> import rankwise as rw
        >>> dense = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> small, _ = rw.compress(dense, [torch.randn(64, 16)], keep={"params": 0.5})
        >>> blocks = BlockReconstruction(dense, small)
        >>> blocks(torch.randn(8, 16)).backward()

    Source: block-wise reconstruction as in Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block
    Reconstruction", 2021, arXiv 2102.05426, all blocks at once.
    """

    def __init__(self, dense: nn.Module, small: nn.Module, blocks: str | Sequence[str] = "auto") -> None:
        self.dense, self.small = unwrap(dense), unwrap(small)
        self.blocks = find_blocks(self.small) if blocks == "auto" else list(blocks)
        if not self.blocks or (isinstance(blocks, str) and blocks != "auto"):
            raise ValueError(
                f'blocks is {blocks!r} and gives no block; name modules, or "auto" on a factorised network'
            )
        for name in self.blocks:
            module_at(self.dense, name)
            module_at(self.small, name)

    def __call__(self, inputs: Any) -> Tensor:
        """The loss of one batch; a ValueError names a block whose outputs differ in shape between the networks."""
        with (
            torch.no_grad(),
            evaluating(self.dense),
            rows_kept(self.dense),
            recorded(self.dense, self.blocks) as wanted,
        ):
            call(self.dense, inputs)
        losses: list[Tensor] = []

        def compare(name: str, output: Any) -> None:
            if not wanted[name]:
                raise ValueError(f"block {name!r} is called more often in the small network than in the dense one")
            for ours, theirs in zip(tensors_in(output), tensors_in(wanted[name].popleft()), strict=True):
                if theirs.is_floating_point():
                    losses.append(relative_error(ours, theirs))

        with _cut(self.small, self.blocks, compare):
            call(self.small, inputs)
        if not losses:
            raise ValueError(f"none of the blocks {', '.join(self.blocks)} was called")
        return torch.stack(losses).sum()


@exclusive
def find_blocks(model: nn.Module) -> list[str]:
    """Qualified names of the repeated blocks of a network that hold factorised layers; no block is inside another.

    Blocks are children of a `Sequential` or `ModuleList`, however deep, else the network's own children.

    Example:
        >>> find_blocks(nn.Linear(2, 2))
        []
    """
    found = []
    for name, child in model.named_children():
        if is_factorised(child):
            found += _blocks(model, name, child) or [name]
    return found


def _blocks(parent: nn.Module, name: str, child: nn.Module) -> list[str]:
    if not is_factorised(child):
        return []
    if _holds_blocks(parent) and not _holds_blocks(child):
        return [name]
    parts = child.named_children()
    return [block for key, part in parts for block in _blocks(child, f"{name}.{key}", part)]


def _holds_blocks(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList)) and not isinstance(module, LowRank)


@contextmanager
def _cut(model: nn.Module, names: Sequence[str], compare: Any) -> Iterator[None]:
    """Stop gradients at the inputs of each block; compare its outputs at once, before anything changes them."""

    def detach(module: nn.Module, args: Any, kwargs: Any) -> Any:
        # A copy, as a block that works in place must not change the outputs that the block before it is compared by.
        return map_tensors(lambda t: t.detach().clone(), args), map_tensors(lambda t: t.detach().clone(), kwargs)

    with ExitStack() as hooks:
        for name in names:
            block = module_at(model, name)
            hooks.callback(block.register_forward_pre_hook(own_thread(detach), with_kwargs=True).remove)

            def hook(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                compare(name, output)

            hooks.callback(block.register_forward_hook(own_thread(hook)).remove)
        yield
