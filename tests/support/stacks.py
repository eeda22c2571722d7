"""Small transformers: stacks of blocks with hidden units, and what makes a stack one or not."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention of one head and an MLP, each added to the stream."""

    def __init__(self, width: int = 12, units: int = 32) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, units), nn.Linear(units, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.norm1(x)
        x = x + self.o(F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h), mask))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Stack(nn.Module):
    """A table of words, blocks with a mask, a head; control flow that depends on values cannot be traced."""

    def __init__(self, depth: int = 3, words: int = 30) -> None:
        super().__init__()
        self.words = nn.Embedding(words, 12)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(12, 20)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = None if attention_mask is None else attention_mask[:, None, :].bool()
        if input_ids.max() < 0:
            raise ValueError("no words")
        return self.head(self.run(self.words(input_ids), mask))  # type: ignore[no-any-return]

    def run(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x


class Skips(Stack):
    """The last block reads what came long before it."""

    def run(self, x: Tensor, mask: Tensor | None) -> Tensor:
        first = self.blocks[0](x, mask)
        second: Tensor = self.blocks[1](first, mask)
        return self.blocks[2](first.tanh() + second, mask)  # type: ignore[no-any-return]


class Shared(Stack):
    """Blocks return tuples, and hand on what the first one made."""

    class Wrapped(nn.Module):
        """One block."""

        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor, mask: Tensor | None, made: Tensor | None = None) -> tuple[Tensor, Tensor]:
            made = x.mean(-1, keepdim=True) if made is None else made
            return self.block(x, mask) + made, made

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Wrapped() for _ in range(3))

    def run(self, x: Tensor, mask: Tensor | None) -> Tensor:
        made: Tensor | None = None
        for block in self.blocks:
            x, made = block(x, mask, made=made)
        return x


def stack_of(kind: type[nn.Module] = Stack) -> Any:
    """A network with weights that matter, in eval mode."""
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "words" not in name:
                parameter.mul_(2)
    return model


def words(count: int = 2, samples: int = 16, length: int = 10, seed: int = 1) -> list[dict[str, Tensor]]:
    """Batches of words; the last third of every second sample is padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(samples, length, dtype=torch.long)
    mask[::2, length - length // 3 :] = 0
    return [
        {"input_ids": torch.randint(30, (samples, length), generator=generator), "attention_mask": mask}
        for _ in range(count)
    ]
