"""The checkpoint of a compression: a folder from which a stopped run resumes.

    checkpoint.json            what identifies the run, and the sha256 of every file
    statistics-*.safetensors   of the calibration data
    curves-*.json              the options of one site each
    plan-*.json
    layer-*.safetensors        the values of one chain each

Every part follows from those before it, so a missing one is made again with the same bits. Nothing is executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from ..files import built, digest, is_temporary, parse_json, read_text, replacing, sha256_of, shown, target_of, told
from ..plan import Done
from ..running.randomness import Randomness
from ..statistics import Statistics
from .parts import CURVES, LAYERS, PLAN, STATISTICS, Layer, Part, Value
from .signature import identity

logger = logging.getLogger("rankwise")

MANIFEST = "checkpoint.json"
VERSION = 1
_KIND = "rankwise checkpoint"
_FILE = re.compile(r"(statistics|curves|plan|layer)-[0-9a-f]{12}\.(json|safetensors)")
_ANEW = "delete the folder and start anew"


@dataclass(frozen=True, kw_only=True)
class _About:
    kind: str
    version: int
    run: dict[str, Any]
    files: dict[str, tuple[str, str]]
    sha256: str


class Work:
    """The finished parts of a compression, kept in a folder; without a folder nothing is kept.

    Args:
        folder: made if missing; it must be empty, or hold the checkpoint to resume from.

    Raises:
        ValueError: for a folder with other content, with a checkpoint but without `resume`, or with a damaged or no
            checkpoint.

    Example:
        >>> from rankwise import Plan
        >>> work = Work()
        >>> work.once(PLAN, lambda: Plan(rows=()))
        Plan(rows=(), ...)
    """

    def __init__(self, folder: str | Path | None = None, resume: bool = False) -> None:
        self.folder = None if folder is None else Path(folder)
        self.run: dict[str, Any] = {}
        self.files: dict[str, tuple[str, str]] = {}  # part -> name and sha256 of its file
        self._told = False
        if self.folder is None:
            if resume:
                raise ValueError("resume needs the checkpoint to resume from; name its folder")
        elif resume:
            self._read(self.folder)
        else:
            _check_empty(self.folder)

    def begin(self, model: nn.Module, data: Iterable[Any] | None, options: Mapping[str, Any]) -> None:
        """Identify the run, before its long work.

        Args:
            data: batches of the run, the same in each pass.
            options: everything else that affects the result.

        Raises:
            ValueError: if the folder belongs to another run, naming what differs; for data that differs from pass to
                pass.
            OSError: if the folder cannot be written to.
        """
        if self.folder is None:
            return
        run = json.loads(json.dumps(identity(model, data, options)))
        if self.run and self.run != run:
            pairs = {key: (self.run.get(key), run.get(key)) for key in {**self.run, **run}}
            differ = [f"{key} {shown(a)} there, {shown(b)} here" for key, (a, b) in pairs.items() if a != b]
            raise ValueError(
                f"checkpoint {self.folder} is of another run: {'; '.join(differ)}; resume with the same settings, or "
                "name another folder"
            )
        if self.run:
            logger.info("resuming from checkpoint %s, which has %s", self.folder, self.told())
        self.run = run
        self._write(self.folder)

    def told(self) -> str:
        """The finished parts, in words."""
        layers = sum(key.startswith(f"{LAYERS.name} ") for key in self.files)
        parts = [part.name for part in (STATISTICS, CURVES, PLAN) if part in self]
        return ", ".join([*parts, f"{layers} factorised layers"])

    def __contains__(self, part: Part[Any]) -> bool:
        """Whether there is a part of a kind."""
        return any(key.partition(" ")[0] == part.name for key in self.files)

    def of(self, part: Part[Value], variant: object = "") -> Done[Value]:
        """The parts of a kind by site, to read and add to; variants are kept apart."""
        return {} if self.folder is None else _Kept(self, part, str(variant))

    def once(self, part: Part[Value], make: Callable[[], Value]) -> Value:
        """The part made before, or else now."""
        done = self.of(part)
        if "" in done:
            return done[""]
        # Later parts draw the same random numbers whether this one is made now or was made before.
        with Randomness(nn.Identity()).kept():
            made = done[""] = make()
        return made

    def statistics(self, model: nn.Module, example: Any, collect: Callable[[], Statistics]) -> Statistics:
        """Statistics of the network; stored ones get the example and devices back that their file does not hold."""
        stats = self.once(STATISTICS, collect)
        if stats.sites.example is not None:
            return stats
        sites = replace(stats.sites, example=example)
        devices = {name: next(sites[name].layer(model).parameters()).device for name in stats}
        moments = {name: _on(found, devices[name]) for name, found in stats.items()}
        return Statistics(moments, sites=sites, samples=stats.samples, seed=stats.seed)

    def remove(self) -> None:
        """Delete the checkpoint; other files stay, and the folder with them."""
        if self.folder is None:
            return
        own = {MANIFEST, *(name for name, _ in self.files.values())}
        for path in list(self.folder.iterdir()):
            if path.name in own:
                path.unlink()
            elif _is_left(path.name):
                shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # not empty
            self.folder.rmdir()

    def keep(self, key: str, part: Part[Value], value: Value) -> None:
        """Write a part. An error of the disk is logged once, and the run goes on."""
        assert self.folder is not None
        name = f"{part.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}{part.suffix}"
        try:
            part.write(self.folder / name, value)
            self.files[key] = name, sha256_of(self.folder / name)
            self._write(self.folder)
        except OSError as error:
            if not self._told:
                logger.warning(
                    "checkpoint %s misses a part that cannot be written (%s); the run goes on, and would make that "
                    "part again after a stop",
                    self.folder,
                    error,
                )
            self._told = True

    def _write(self, folder: Path) -> None:
        about = {"kind": _KIND, "version": VERSION, "run": self.run, "files": self.files}
        with replacing(folder / MANIFEST) as new:
            new.write_text(json.dumps({**about, "sha256": digest(about)}, indent=1), encoding="utf-8")

    def _read(self, folder: Path) -> None:
        path = folder / MANIFEST
        if not path.is_file():
            raise ValueError(f"there is no checkpoint {folder}; start without resuming")
        with told(path, _ANEW):
            plain = parse_json(read_text(path))
            if not isinstance(plain, dict) or plain.get("kind") != _KIND:
                raise ValueError("it is not a checkpoint of Rankwise")
            about = built(_About, plain)
            if about.version != VERSION:
                raise ValueError(f"it is of version {about.version}, this Rankwise reads version {VERSION}")
            if plain.pop("sha256") != digest(plain):
                raise ValueError("its content does not match its sha256")
        self.run, self.files = about.run, about.files
        for key, (name, sha256) in list(self.files.items()):
            if not _FILE.fullmatch(name):
                raise ValueError(f"{path} names {name!r}, which is not a file of a checkpoint; {_ANEW}")
            if not (folder / name).is_file():
                del self.files[key]
            elif sha256_of(folder / name) != sha256:
                raise ValueError(f"checkpoint file {folder / name} is damaged; delete it, and its part is made again")


class _Kept(Generic[Value]):
    """The parts of a kind in a folder, by site."""

    def __init__(self, work: Work, part: Part[Value], variant: str) -> None:
        self.work, self.part, self.variant = work, part, variant

    def __contains__(self, site: object) -> bool:
        return self._key(site) in self.work.files

    def __getitem__(self, site: str) -> Value:
        assert self.work.folder is not None
        return self.part.read(self.work.folder / self.work.files[self._key(site)][0])

    def __setitem__(self, site: str, value: Value) -> None:
        self.work.keep(self._key(site), self.part, value)

    def _key(self, site: object) -> str:
        return f"{self.part.name} {self.variant}:{site}"


def _check_empty(folder: Path) -> None:
    """Raise for a folder that holds something."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"checkpoint {folder} is a file; name a folder")
    if (folder / MANIFEST).exists():
        raise ValueError(f"checkpoint {folder} exists; resume from it, or delete it")
    if folder.is_dir() and not all(_is_left(path.name) for path in folder.iterdir()):
        raise ValueError(f"checkpoint {folder} is not empty and holds no {MANIFEST}; name a new or an empty folder")


def _is_left(name: str) -> bool:
    """Whether this is a leftover of a run that was killed while writing."""
    if not is_temporary(name):
        return False
    target = target_of(name)
    return target == MANIFEST or _FILE.fullmatch(target) is not None


def _on(moments: Value, device: torch.device) -> Value:
    """Moments with their tensors copied to a device and out of the memory of the file that they were read from."""
    changed: dict[str, Any] = {}
    for field in fields(moments):  # type: ignore[arg-type]
        value = getattr(moments, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = value.to(device, copy=True)
        elif is_dataclass(value):
            changed[field.name] = _on(value, device)
    return replace(moments, **changed)  # type: ignore[type-var]


__all__ = ["CURVES", "LAYERS", "PLAN", "STATISTICS", "Done", "Layer", "Part", "Work"]
