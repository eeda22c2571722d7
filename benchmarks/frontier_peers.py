"""What other libraries make of a network: Torch-Pruning at equal time, tensorly at equal ranks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks import formats_peers
from benchmarks.tasks import Task
from rankwise.formats import Factors, Format, Ranks
from rankwise.formats.cp import CP3
from rankwise.formats.shape import Shape
from rankwise.formats.tucker2 import Tucker2
from rankwise.linalg.metric import Metric
from rankwise.network.site import Site
from rankwise.plan import Plan

# Bisections of the pruning ratio, until the time of both is about the same.
BISECTIONS = 6


def peers(task: Task, plan: Plan, ours: nn.Module, engine: str, minutes: float) -> Iterator[tuple[str, nn.Module]]:
    """Networks of other libraries, and ours with the same healing."""
    if formats_peers.available():
        yield "tensorly, same ranks", decomposed(task, plan)
    batches = task.batches()
    healed, _ = rw.heal(ours, task.model, batches, minutes=minutes)
    yield "ours, healed", healed
    try:
        pruned = pruned_to(task, ours, engine)
    except (ImportError, ValueError, RuntimeError) as error:
        print(f"Torch-Pruning: {error}", flush=True)
        return
    yield "Torch-Pruning, equal time", pruned
    healed, _ = rw.heal(pruned, task.model, batches, minutes=minutes, train="all")
    yield "Torch-Pruning, equal time, healed", healed


def decomposed(task: Task, plan: Plan) -> nn.Module:
    """The plan's network with tensorly's decompositions of the weights; pairs of layers are plain SVDs."""
    example = task.batches()[0][:1]
    sites = rw.find(task.model, example)
    return rw.factorise(task.model, replace(plan, metric="weight"), sites, formats=DECOMPOSED)


class TensorlyCP3(CP3):
    """`cp3` with the terms that tensorly finds for the weight alone."""

    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks, enough: float = 0.0) -> Factors:
        found = _found(self.name, weight, ranks)
        scale, (A, B, N) = found
        A = A if scale is None else A * scale
        ours = self.network(Shape.of_site(site), self.check(site, ranks))
        tensors = {
            f"{n}_G{letters}": value
            for n, (letters, value) in enumerate(zip(ours.factors, (B.mT, N.mT, A), strict=True))
        }
        return _factors(self.name, ranks, tensors, weight, found)


class TensorlyTucker2(Tucker2):
    """`tucker2` with the bases that tensorly finds for the weight alone."""

    def fit(self, site: Site, weight: Tensor, metrics: Sequence[Metric], ranks: Ranks, enough: float = 0.0) -> Factors:
        found = _found(self.name, weight, ranks)
        core, (A, B) = found
        return _factors(self.name, ranks, {"A_GTR": A, "G_GRSQ": core, "B_GCS": B}, weight, found)


def _found(format: str, weight: Tensor, ranks: Ranks) -> Any:
    return formats_peers.decomposer(format, weight, ranks, formats_peers.sweeps_for(weight), 1e-6, seed=0)()


def _factors(format: str, ranks: Ranks, tensors: dict[str, Tensor], weight: Tensor, found: Any) -> Factors:
    groups = {name: value.double()[None] for name, value in tensors.items()}
    dense = formats_peers.dense(format, weight, found)
    return Factors(format=format, ranks=ranks, tensors=groups, weight=dense, error=0.0)


DECOMPOSED: dict[str, Format] = {"cp3": TensorlyCP3(), "tucker2": TensorlyTucker2()}


def pruned_to(task: Task, ours: nn.Module, engine: str) -> nn.Module:
    """The network with channels pruned by their magnitude until it takes as long as ours.

    Raises:
        ImportError: if Torch-Pruning is not installed.
        ValueError: if its time does not fall to ours.
    """
    example = task.batches()[0][:1]
    low, high = 0.0, 0.95
    best: nn.Module | None = None
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        network = pruned(task.model, example, ratio)
        times = rw.evaluate.latency({"ours": ours, "pruned": network}, example, engine=engine)
        if (times["pruned"] / times["ours"]).median <= 1.02:
            best, high = network, ratio
        else:
            low = ratio
    if best is None:
        raise ValueError("no pruning ratio is as fast as our network")
    return best


def pruned(model: nn.Module, example: Tensor, ratio: float) -> nn.Module:
    """A copy of the network with a share of its channels pruned, all but those of the last layer."""
    import torch_pruning as tp

    network = copy.deepcopy(model).requires_grad_(True)
    last = [part for part in network.modules() if isinstance(part, (nn.Linear, nn.Conv2d))][-1]
    pruner = tp.pruner.MetaPruner(
        network,
        example,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[last],
        round_to=8,
    )
    pruner.step()
    with torch.no_grad():
        network(example)
    return network.eval().requires_grad_(False)
