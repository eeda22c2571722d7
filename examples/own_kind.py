"""Add a kind of layer: two linear layers that read the same input, fitted as one.

python examples/own_kind.py
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.network.forward import Forward
from rankwise.network.kinds import Joint, register


class GateUp(Joint):
    """`gate` and `up` of a gated layer, which share their first factor."""

    name = "gate_up"

    def joined(self, forward: Forward) -> Iterator[tuple[str, ...]]:
        for name, module in forward.model.named_modules():
            if isinstance(module, Gated):
                yield f"{name}.gate", f"{name}.up"


class Gated(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.gate(x).sigmoid() * self.up(x))


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Gated(64, 96), nn.LayerNorm(64), Gated(64, 96))
    mixed = torch.randn(20, 64)  # the inputs lie near a space of 20 dimensions
    batches = [torch.randn(64, 20) @ mixed + 0.1 * torch.randn(64, 64) for _ in range(8)]
    for kind in ("alone", "joint"):
        if kind == "joint":
            register(GateUp())
        small, report = rw.compress(model, batches, keep={"params": 0.5})
        lost = (small(batches[0]) - model(batches[0])).norm() / model(batches[0]).norm()
        print(f"{kind}: {len(report.sites)} sites, error {lost:.2%} at {report.compressed.params:,} parameters")


if __name__ == "__main__":
    main()
