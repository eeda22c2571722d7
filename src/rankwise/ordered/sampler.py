"""Which layer uses how many of its components in a step.

Source: Horvath et al., "Maestro", 2023, arXiv 2308.14929, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

SAMPLERS = ("pairs", "layers")


class Sampler:
    """Draw one pair (layer, b) for each step, b from 1 to the layer's active components; all other layers are full.

    "pairs" lists all pairs, shuffles them and goes through them, again and again: every pair comes equally often, so
    that a layer comes in proportion to its components. "layers" draws the layer first, all alike, then b. Draws follow
    from the seed alone, so that all processes draw the same.

    Args:
        kind: "pairs" or "layers".
        seed: random seed.

    Raises:
        ValueError: for another kind.

    Example:
        >>> sampler = Sampler(seed=0)
        >>> sorted(sampler({"a": 2, "b": 1}) for _ in range(3))
        [('a', 1), ('a', 2), ('b', 1)]
    """

    def __init__(self, kind: str = "pairs", seed: int = 0) -> None:
        if kind not in SAMPLERS:
            raise ValueError(f"sampler {kind!r} is not one of {', '.join(SAMPLERS)}")
        self.kind, self.seed = kind, seed
        self.drawn = 0
        self.waiting: list[tuple[str, int]] = []

    def __call__(self, active: Mapping[str, int]) -> tuple[str, int]:
        """The next layer and its number of components.

        Args:
            active: components of each layer now; pairs that are no longer among them are passed over.
        """
        if self.kind == "layers":
            random = self._random()
            name = list(active)[int(torch.randint(len(active), (), generator=random))]
            return name, 1 + int(torch.randint(active[name], (), generator=random))
        while True:
            if not self.waiting:
                pairs = [(name, b) for name, count in active.items() for b in range(1, count + 1)]
                order = torch.randperm(len(pairs), generator=self._random()).tolist()
                self.waiting = [pairs[place] for place in order]
            name, count = self.waiting.pop()
            if count <= active[name]:
                return name, count

    def _random(self) -> torch.Generator:
        self.drawn += 1
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.drawn)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"kind": self.kind, "seed": self.seed, "drawn": self.drawn, "waiting": [list(p) for p in self.waiting]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint; a ValueError for that of another sampler."""
        there, here = (state["kind"], state["seed"]), (self.kind, self.seed)
        if there != here:
            raise ValueError(
                f"the checkpoint was written with sampler {there[0]!r} and seed {there[1]}, not {here[0]!r} and "
                f"{here[1]}; resume with the same"
            )
        self.drawn, self.waiting = state["drawn"], [(name, count) for name, count in state["waiting"]]
