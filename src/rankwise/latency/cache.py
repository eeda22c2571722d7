"""Measured times on disk: one file for each device, engine and number of threads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ..files import replacing
from .clock import FIGURES, Latency
from .engine import Engine

# Raised when a layer of the same signature is built or counted in another way.
_VERSION = 1


def cache_folder() -> Path:
    """`$RANKWISE_CACHE`, or `~/.cache/rankwise`."""
    return Path(os.environ.get("RANKWISE_CACHE") or Path.home() / ".cache" / "rankwise")


class Cache:
    """Times by signature of the layer, and what they are true for.

    Args:
        engine: that measured them.
        network: whose layers they are; it says on which device.
        around: bytes that lay between two runs.
        folder: of the file.

    Attributes:
        path: the file; another device, engine, version, number of threads or amount between runs has another one.
    """

    def __init__(self, engine: Engine, network: nn.Module, around: int = 0, folder: Path | None = None) -> None:
        self._valid_for = {
            "device": engine.device(network),
            "engine": engine.name,
            "version": engine.version,
            "measurement": _VERSION,
            "threads": engine.threads,
            "bytes between runs": around,
        }
        digest = hashlib.sha256(json.dumps(self._valid_for, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (folder or cache_folder() / "latency") / f"{engine.name}-{digest}.json"
        self._times = self._read()

    def __contains__(self, signature: str) -> bool:
        return signature in self._times

    def __getitem__(self, signature: str) -> Latency:
        return self._times[signature]

    def add(self, times: Mapping[str, Latency]) -> None:
        """Keep these too; the file is replaced as a whole, with what others wrote to it in the meantime."""
        self._times = {**self._read(), **self._times, **times}
        layers = {key: {name: getattr(time, name) for name in FIGURES} for key, time in sorted(self._times.items())}
        with replacing(self.path) as new:
            new.write_text(json.dumps({**self._valid_for, "layers": layers}, indent=0) + "\n", encoding="utf-8")

    def _read(self) -> dict[str, Latency]:
        if not self.path.is_file():
            return {}
        try:
            layers = json.loads(self.path.read_text(encoding="utf-8"))["layers"]
            return {signature: Latency(**time) for signature, time in layers.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path} is no file of measured times ({error}); delete it") from error
