"""Train at full rank until the ranks settle, then switch to factors.

Sources: Wang, Agarwal, U-chupala, Tanaka, Xing, Papailiopoulos, "Cuttlefish: Low-Rank Model Training without All the
Tuning", 2023, arXiv 2305.02538 (scaled stable ranks, the switch when they settle); Wang, Agarwal, Papailiopoulos,
"Pufferfish: Communication-efficient Models At No Extra Cost", 2021, arXiv 2103.03936 (a fixed ratio).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..formats.svd import SVD
from ..linalg.spectrum import stable_rank
from ..network.sites import Sites
from ..plan import Plan
from ..running.guards import unwrap
from ..training.technique import Technique
from ..training.trained_sites import plan_at, site_matrix, trained_sites


class WarmUp(Technique):
    """The first, dense part of a training, as a technique of `Loop`; its plan says what to switch to.

        rank_i(t) = full_i * stable(W_i(t)) / stable(W_i(0)),    stable(W) = ||W||_F^2 / s_1^2

    The training ends at the first look at the held-out samples since which no rank has moved by more than `settled` of
    its layer's full rank; factorise by the plan then, and train on. With a `ratio` the ranks are that share of the full
    ones, and the loop's limit says when to switch.

    Args:
        sites: of the network that is trained.
        settled: the largest change between two looks, as a share of the full rank.
        ratio: fixed share of the full ranks instead; 0 for the rule above.
        only: patterns of the layers to switch.

    Raises:
        ValueError: for shares out of range.

    Example:
        >>> import rankwise as rw
        >>> from rankwise.training import Loop, LoopOptions, Samples
        >>> model, x = nn.Sequential(nn.Linear(32, 32)), torch.randn(64, 32)
        >>> loss = lambda inputs, _: (model(inputs) - inputs).square().mean()
        >>> told = WarmUp(rw.find(model, x[:1]), ratio=0.25)
        >>> loop = Loop(model, loss, Samples.of(x), LoopOptions(epochs=1), techniques=[told])
        >>> _ = loop.run()
        >>> loop.plan["0"].ranks
        (8,)
    """

    def __init__(
        self, sites: Sites, *, settled: float = 0.01, ratio: float = 0.0, only: str | Iterable[str] = "*"
    ) -> None:
        if not 0 < settled < 1 or not 0 <= ratio <= 1:
            raise ValueError(f"settled is {settled}, above 0 and below 1, and ratio {ratio}, from 0 to 1")
        self.sites, self.settled, self.ratio, self.only = sites, settled, ratio, only
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def begin(self, model: nn.Module) -> None:
        self._model = unwrap(model)
        self._chosen = trained_sites(self._model, self.sites, self.only, "switch")
        self._full = {site.name: SVD().limits(site)[0] for site in self._chosen}
        self.first = self._stable_ranks()
        self.last = self.ranks()

    def ranks(self) -> dict[str, float]:
        """The scaled stable ranks of now, by site."""
        scaled = {name: now * self._full[name] / self.first[name] for name, now in self._stable_ranks().items()}
        return {name: min(rank, float(self._full[name])) for name, rank in scaled.items()}

    def ends(self) -> bool:
        if self.ratio:
            return False
        before, self.last = self.last, self.ranks()
        return all(abs(self.last[name] - rank) <= self.settled * self._full[name] for name, rank in before.items())

    def finish(self, model: nn.Module) -> Plan:
        wanted = {name: self.ratio * full for name, full in self._full.items()} if self.ratio else self.ranks()
        whole = {name: max(math.ceil(rank), 1) for name, rank in wanted.items()}
        why = f"a ratio of {self.ratio:g}" if self.ratio else "the scaled stable rank at the switch"
        return plan_at(model, self.sites, whole, why)

    def state_dict(self) -> dict[str, Any]:
        return {"first": dict(self.first), "last": dict(self.last)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first, self.last = dict(state["first"]), dict(state["last"])

    @torch.no_grad()
    def _stable_ranks(self) -> dict[str, float]:
        found = {site.name: float(stable_rank(site_matrix(self._model, site)).mean()) for site in self._chosen}
        return {name: max(rank, 1.0) for name, rank in found.items()}
