"""A machine whose engines are known: times that a probe would have measured."""

from __future__ import annotations

import importlib.util

from torch import nn

from rankwise.latency import Latency, get_engine
from rankwise.latency.cache import Cache
from rankwise.latency.grid import RANKS, time_name


def store_grid(block: int, engines: tuple[str, ...] = ("torch", "onnxruntime")) -> None:
    """Store times of engines that compute so many channels at once, in the cache that RANKWISE_CACHE names."""
    for name in engines:
        if name == "onnxruntime" and not importlib.util.find_spec("onnxruntime"):
            continue
        times = {}
        for kind in ("convolution", "linear"):
            for rank in RANKS:
                seconds = 1e-5 * -(-rank // block)
                times[time_name(kind, rank)] = Latency(median=seconds, low=seconds, high=seconds)
        Cache(get_engine(name), nn.Linear(1, 1)).add(times)
