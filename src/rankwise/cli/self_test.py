"""Whether a small compression works on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..artifact import load, save
from ..describe.environment import engines
from ..evaluate import latency
from ..session import compress


def self_test() -> Iterator[tuple[str, float]]:
    """Compress a small network, store it, load it, and run it in every engine that is here.

    Yields:
        What has worked, and the seconds that it took.

    Raises:
        RuntimeError: naming the step that went wrong.
    """
    generator = torch.Generator().manual_seed(0)
    network, batches = _network(), [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(4)]
    start = time.perf_counter()
    small, report = compress(network, batches, keep={"macs": 0.5})
    kept = report.plan.planned["macs"] / report.plan.dense["macs"]
    if kept > 0.5:
        raise RuntimeError(f"self-test: {kept:.1%} of the MACs are kept, more than half")
    yield "compress a small network to half of its MACs", time.perf_counter() - start
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(_network(), save(small, Path(folder) / "out"))
    with torch.no_grad():
        if not torch.equal(loaded(batches[0]), small(batches[0])):
            raise RuntimeError("self-test: a network that was saved and loaded gives other outputs")
    yield "save and load it with the same bits", time.perf_counter() - start
    for engine in engines():
        if engine.problem or engine.name == "compile":  # compiling takes a minute and needs a C++ compiler
            continue
        start = time.perf_counter()
        latency({"dense": network, "small": small}, batches[0][:1], engine=engine.name, rounds=1, warmup=0)
        yield f"run both in {engine.name}", time.perf_counter() - start


def _network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    return nn.Sequential(*layers).eval()
