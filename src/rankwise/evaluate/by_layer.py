"""The error of every layer inside the running compressed network."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..layers.kinds import spatial_dims
from ..running.batches import made
from ..running.calling import call
from ..running.exclusive import own_thread
from ..running.guards import unwrap
from ..running.pristine import pristine
from ..running.verbs import verb


@dataclass
class _Sums:
    """Sums over all outputs of a layer; `ones` and `squares` are by channel."""

    error: float = 0.0
    squares: Any = 0.0
    ones: Any = 0.0
    rows: int = 0

    def add(self, theirs: Tensor, ours: Tensor, channel: int) -> None:
        rows_NC = theirs.double().movedim(channel, -1).flatten(0, -2)
        self.error += float((theirs.double() - ours.double()).square().sum())
        self.squares = self.squares + rows_NC.square().sum(0)
        self.ones = self.ones + rows_NC.sum(0)
        self.rows += len(rows_NC)

    @property
    def relative(self) -> float:
        spread = float((self.squares - self.ones.square() / self.rows).sum())
        return self.error / spread if spread > 0 else 0.0


@verb
def layer_errors(
    small: nn.Module, dense: nn.Module, batches: Iterable[Any], names: Collection[str]
) -> dict[str, float]:
    """Relative squared error of layers' outputs: `E ||y - z||^2 / E ||y - E y||^2`, dense output y, compressed z.

    Each layer of the compressed network reads what the layers before it give, so the errors of these are in it. A
    plan predicts the error of a layer that reads the dense network's inputs.

    Args:
        small: the compressed network.
        dense: the network that it was made from.
        batches: inputs without labels.
        names: of the layers; those that give no tensor, or are not in both networks, are left out.

    Returns:
        Errors by name.

    Example:
        >>> import torch
        >>> dense = nn.Sequential(nn.Linear(4, 4))
        >>> layer_errors(dense, dense, [torch.randn(8, 4)], ["0"])
        {'0': 0.0}
    """
    dense, small = unwrap(dense), unwrap(small)
    theirs, ours = dict(dense.named_modules()), dict(small.named_modules())
    shared = [name for name in names if name in theirs and name in ours]
    sums = {name: _Sums() for name in shared}
    seen: dict[str, list[Tensor]] = {name: [] for name in shared}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen[name].append(output)

        return hook

    def compare(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and seen[name] and seen[name][0].shape == output.shape:
                sums[name].add(seen[name].pop(0), output, -1 - spatial_dims(theirs[name]))

        return hook

    with pristine(dense), pristine(small):
        for name in shared:
            theirs[name].register_forward_hook(own_thread(keep(name)))  # which `pristine` removes
            ours[name].register_forward_hook(own_thread(compare(name)))
        for index, batch in enumerate(made(batches)):
            call(dense, batch, index=index)
            call(small, batch, index=index)
            for outputs in seen.values():
                outputs.clear()
    return {name: each.relative for name, each in sums.items() if each.rows}
