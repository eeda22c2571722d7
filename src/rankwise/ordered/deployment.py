"""Deploy an ordered network by taking away components where it costs least, judged on held-out data.

Source: Horvath et al., "Maestro", 2023, arXiv 2308.14929, section 5.4; blocks that are a share of a layer are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..formats.svd import SVD
from ..network.site import Site
from ..network.sites import Sites
from ..running.guards import unwrap
from ..running.pristine import evaluating
from .layer import counts, using

UNITS = ("params", "macs")


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """One of the nested networks.

    Attributes:
        ranks: components by layer.
        cost: parameters or MACs of the ordered layers together.
        loss: what the judge says of it.
    """

    ranks: dict[str, int]
    cost: float
    loss: float


@torch.no_grad()
def deploy(
    model: nn.Module,
    sites: Sites,
    judge: Callable[[nn.Module], float],
    *,
    least: float = 0.1,
    unit: str = "macs",
    block: float = 0.1,
) -> Iterator[Deployed]:
    """Nested networks from all components down to few; nothing is trained.

    Each time the block of one layer goes whose removal raises the loss least for the cost that it saves. A layer costs
    what its two factors cost, or the dense layer if that is less; the first block reaches down to where factors save.

    Args:
        model: with ordered layers; afterwards as before.
        sites: of the network before `order_`.
        judge: the loss on held-out data, less is better.
        least: share of the ordered layers' dense cost at which to end.
        unit: of the cost, "macs" or "params".
        block: share of a layer's largest rank that is taken away at once.

    Yields:
        The networks, the largest first; for `extract`, or to save as profiles.

    Raises:
        ValueError: for another unit, or shares outside 0 to 1.

    Example:
        >>> import rankwise as rw
        >>> from rankwise.ordered import order_
        >>> model, x = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), torch.randn(64, 16)
        >>> sites, wanted = rw.find(model, x), model(x).detach()
        >>> path = list(deploy(order_(model, sites), sites, lambda model: float((model(x) - wanted).square().mean())))
        >>> path[0].ranks, path[-1].cost < path[0].cost
        ({'0': 16, '1': 16}, True)
    """
    if unit not in UNITS or not (0 < least < 1 and 0 < block <= 1):
        raise ValueError(f"unit is {unit!r} of {', '.join(UNITS)}; least {least} and block {block} are shares up to 1")
    model, ranks = unwrap(model), counts(model)
    costs = {name: _costs(sites[name], rank, unit) for name, rank in ranks.items()}
    dense = sum(getattr(sites[name], unit) for name in ranks)

    def judged(tried: dict[str, int]) -> float:
        with using(model, tried), evaluating(model):
            return float(judge(model))

    loss = judged(ranks)
    while True:
        cost = sum(costs[name][rank] for name, rank in ranks.items())
        yield Deployed(ranks=dict(ranks), cost=cost, loss=loss)
        if cost <= least * dense:
            return
        best: tuple[float, float, dict[str, int]] | None = None
        for name, rank in ranks.items():
            size = max(round(block * SVD().limits(sites[name])[0]), 1)
            below = [r for r in range(rank - 1, 0, -1) if costs[name][r] < costs[name][rank]]
            if not below:
                continue
            smaller = max(min(below[0], rank - size), 1)
            tried = {**ranks, name: smaller}
            lost = judged(tried)
            price = (lost - loss) / (costs[name][rank] - costs[name][smaller])
            if best is None or price < best[0]:
                best = price, lost, tried
        if best is None:
            return
        _, loss, ranks = best


def _costs(site: Site, rank: int, unit: str) -> list[float]:
    """Cost of a layer at every rank from 0 (never asked for) to the given one."""
    dense, format = getattr(site, unit), SVD()
    return [0.0, *(min(dense, getattr(format.cost(site, (r,), site.has_bias), unit)) for r in range(1, rank + 1))]
