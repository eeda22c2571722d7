"""Sparse low rank on one layer: wall-clock compared with truncated SVD, and how well one pass ranks the neurons."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row
from benchmarks.slr_cases import CASES, Case
from rankwise.formats import get_format
from rankwise.formats.slr import Importance
from rankwise.formats.slr_levels import paper_ranks
from rankwise.importance import by_cost, by_curvature, by_gradient

# Where the exact criterion is affordable: layer, k, sr, rr and samples; it takes a pass for every neuron.
CRITERIA = (
    ("lenet300", "fc1", 16, 0.5, 0.5, 2000),
    ("lenet300", "fc1", 32, 0.5, 0.25, 2000),
    ("lenet5", "fc", 12, 0.5, 0.5, 500),
    ("vgg", "fc6", 16, 0.5, 0.5, 500),
    ("vgg", "fc7", 16, 0.5, 0.5, 500),
)


# The second order alone, and as it is by default: exact where the loss changes most.
ORDERS: dict[str, Callable[..., Importance]] = {
    "first": by_gradient,
    "second": partial(by_curvature, passes=0),
    "second, exact where largest": by_curvature,
}


def speed(size: int, quick: bool) -> Iterator[Row]:
    """A square layer at sr = rr = 0.5, beside the truncated SVD of the same k; the numbers in it do not matter.

    In `slr, sorted` the important neurons come first already: no index operation is left.
    """
    dense = nn.Linear(size, size)
    site = rw.find(nn.Sequential(dense), torch.zeros(1, size))["0"]
    for k, batch in ((k, batch) for k in (size // 16, size // 8, size // 4) for batch in (1, 64)):
        ranks = {"svd": (k,), "slr": paper_ranks(k, 0.5, 0.5, size, size)}
        ranks["slr, sorted"] = ranks["slr"]
        chains = {name: get_format(name[:3]).build(dense, ranks[name], bias=True).eval() for name in ranks}
        for chain in chains.values():
            for parameter in chain.parameters():
                nn.init.normal_(parameter, std=0.02)
        shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(0)).int()
        chains["slr"][0].inputs.copy_(shuffled[: size // 2])
        chains["slr"][1].order.copy_(shuffled)
        chains["slr, sorted"][0].inputs = chains["slr, sorted"][1].order = None
        models = {"dense": nn.Sequential(dense), **{name: nn.Sequential(chain) for name, chain in chains.items()}}
        for engine in ("torch", "onnxruntime"):
            x = torch.randn(batch, size)
            times = rw.evaluate.latency(models, x, engine=engine, threads=1, rounds=5 if quick else 30)
            for name in models:
                row: Row = {"method": name, "engine": engine, "batch": batch, "k": k}
                if name in ranks:
                    params = get_format(name[:3]).cost(site, ranks[name], bias=False).params
                    row |= {"params_ratio": params / size**2, "against_svd": times[name].median / times["svd"].median}
                yield {**row, "milliseconds": 1000 * times[name].median}


def criterion(module: ModuleType, quick: bool, cache: Path | None) -> Iterator[Row]:
    """Rank correlation of cost criteria that need few passes with the exact one, and processor seconds."""
    cases: dict[str, Case] = {}
    for network, name, k, sr, rr, samples in CRITERIA[:1] if quick else CRITERIA:
        if network not in cases:
            cases[network] = CASES[network](module, quick, cache)
        case = cases[network]
        samples = min(samples, 500) if quick else samples
        site = case.sites[name]
        ranks = paper_ranks(k, sr, rr, site.in_features, site.out_features)[:2]
        data = [(case.calibration[:samples], case.answers[:samples])]
        at = {"network": network, "layer": name, "k": k, "sr": sr, "rr": rr, "samples": samples}
        exact, seconds = timed(partial(by_cost, case.model, site, data, ranks))
        yield {**at, "order": "exact", "seconds": seconds}
        for order, rule in ORDERS.items():
            found, seconds = timed(partial(rule, case.model, site, data, ranks))
            inputs, outputs = (spearman(a[0], b[0]) for a, b in zip(exact, found, strict=True))
            yield {**at, "order": order, "inputs": inputs, "outputs": outputs, "seconds": seconds}


def timed(score: Callable[[], Importance]) -> tuple[Importance, float]:
    """Importance, and its processor seconds."""
    begin = time.process_time()
    found = score()
    return found, time.process_time() - begin


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two lists of values."""
    return float(torch.corrcoef(torch.stack([_places(a), _places(b)]))[0, 1])


def _places(values: Tensor) -> Tensor:
    """Ranks in ascending order; equal values share their mean rank."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[group]
