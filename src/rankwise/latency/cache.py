"""Measured times on disk: one file for each device, engine and number of threads."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..files import built, cut, digest, locked, make_folder, parse_json, read_text, replacing, told
from ..timing.clock import FIGURES, Latency
from .engine import Engine

# Increased when layers of the same signature are built or measured in another way.
_VERSION = 3

logger = logging.getLogger("rankwise")


def cache_folder() -> Path:
    """`$RANKWISE_CACHE`, or `~/.cache/rankwise`."""
    return Path(os.environ.get("RANKWISE_CACHE") or Path.home() / ".cache" / "rankwise")


class Cache:
    """Measured times by signature of the layer, in a file for each device, engine, version and number of threads.

    The network tells the device; times with another number of bytes read between two runs (`around`) are apart too.
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
        """Add times; the file is replaced as a whole, and keeps what others wrote to it in the meantime.

        If it cannot be written, a warning says so, and the times will be measured again.
        """
        self._times = {**self._times, **times}
        try:
            make_folder(self.path.parent)
            with locked(self.path.parent):
                self._times = {**self._read(), **self._times}
                layers = {key: {name: getattr(time, name) for name in FIGURES} for key, time in self._times.items()}
                content = {**self._valid_for, "layers": dict(sorted(layers.items()))}
                with replacing(self.path) as new:
                    text = json.dumps({**content, "sha256": digest(content)}, indent=0)
                    new.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            logger.warning("measured times are not stored: %s", cut(str(error)))

    def _read(self) -> dict[str, Latency]:
        """The times in the file; a damaged file gives none, and a warning."""
        try:
            if not self.path.is_file():
                return {}
            with told(self.path):
                content = parse_json(read_text(self.path))
                if not isinstance(content, dict) or content.pop("sha256", None) != digest(content):
                    raise ValueError("its content is not what its sha256 says")
                stored = built(_Stored, {"layers": content.pop("layers", None)})
                return stored.layers if content == self._valid_for else {}
        except (OSError, ValueError) as error:
            logger.warning("%s; its times are measured again, and it is replaced", error)
            return {}


@dataclass(frozen=True)
class _Stored:
    layers: dict[str, Latency]
