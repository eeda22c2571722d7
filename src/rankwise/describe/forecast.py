"""What a compression or a training will take: memory, disk, and time from a short measured probe."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import nn

from ..network.sites import Sites
from ..running.calling import call
from ..running.pristine import pristine
from ..running.state import stored_bytes
from ..statistics.collection import memory_needed
from ..statistics.rows import rows_expected

SIDE = 384  # of the matrices that the probe multiplies and decomposes
REPEATS = 3
ENGINE_SECONDS = 20.0  # to measure two networks in an engine: 30 rounds of half a second, and the warm-up
DECOMPOSITIONS = 6  # of matrices with as many rows as a layer has inputs, for the curves of the usual formats
BACKWARD = 3.0  # a training step takes about this many forward passes


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Short measurements on this machine.

    Attributes:
        forward: seconds of one forward of a batch.
        product: multiply-accumulates in a second, of square matrices in float64.
        decomposition: seconds of a symmetric eigenvalue problem of `SIDE` rows.
    """

    forward: float
    product: float
    decomposition: float

    @classmethod
    def of(cls, model: nn.Module, batch: Any) -> Probe:
        """Measure: a few seconds at most, unless a single forward takes longer."""
        matrix = torch.randn(SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        square = matrix @ matrix.mT
        with pristine(model):
            call(model, batch)
            forward = _seconds(lambda: call(model, batch))
        product = SIDE**3 / _seconds(lambda: matrix @ matrix)
        return cls(forward=forward, product=product, decomposition=_seconds(lambda: torch.linalg.eigh(square)))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will take.

    Attributes:
        sites, free: layers that were found, and those of them that may be factorised.
        memory: bytes beside the network and a copy of it.
        disk: bytes that are written at most.
        seconds: by step.
    """

    sites: int
    free: int
    memory: int
    disk: int
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of all steps."""
        return sum(self.seconds.values())


def compression(
    model: nn.Module,
    sites: Sites,
    batches: Iterable[Any],
    *,
    samples: int,
    tested: int,
    batch: int,
    positions: int | str,
    sequential: bool,
    builds: int,
    engines: int,
) -> Forecast:
    """Forecast a compression.

    Args:
        model: the dense network.
        batches: its inputs; only the first one is run.
        samples, tested: how many calibrate, and how many judge.
        batch: samples in a batch.
        positions: of a sample that statistics take, as for `collect`.
        sequential: whether fits run over the data once more.
        builds: networks that are built and judged.
        engines: in which they are timed.

    Example:
        >>> from rankwise import find
        >>> net = nn.Sequential(nn.Linear(8, 8))
        >>> batches = [torch.randn(4, 8)]
        >>> counts = {"samples": 4, "tested": 4, "batch": 4, "builds": 1, "engines": 0}
        >>> compression(net, find(net, batches[0]), batches, positions="auto", sequential=True, **counts).total > 0
        True
    """
    free = [site for site in sites.values() if not site.stays_dense]
    probe = Probe.of(model, next(iter(batches)))
    held, fitting = memory_needed(free, samples, positions)
    rows = {site.name: rows_expected(site, samples, positions) for site in free}
    gram = sum(rows[site.name] * site.groups * site.in_features**2 for site in free if site.multiplies) / probe.product
    pass_over = ceil(samples / batch) * probe.forward + gram
    cubes = sum(min(site.in_features, site.out_features) ** 3 for site in free)
    products = sum(site.out_features * site.in_features**2 for site in free)
    curves = DECOMPOSITIONS * (probe.decomposition * cubes / SIDE**3 + products / probe.product)
    seconds = {"collect statistics": pass_over, "choose formats and ranks": curves}
    if builds:
        seconds["factorise"] = builds * (2 * pass_over if sequential else curves / DECOMPOSITIONS)
        seconds["judge"] = (2 * builds + 1) * ceil(tested / batch) * probe.forward
        seconds["measure times"] = builds * engines * ENGINE_SECONDS
    stored = stored_bytes(model)
    return Forecast(
        sites=len(sites),
        free=len(free),
        memory=held + fitting,
        disk=held // 2 + max(builds, 1) * stored,
        seconds=seconds,
    )


def training(model: nn.Module, batches: Iterable[Any], *, samples: int, batch: int, epochs: float) -> float:
    """Seconds of a training by its passes over the samples."""
    probe = Probe.of(model, next(iter(batches)))
    return BACKWARD * probe.forward * epochs * ceil(samples / batch)


def _seconds(run: Any) -> float:
    """The least time of a few runs: what the machine can do when nothing disturbs it."""
    took = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return min(took)
