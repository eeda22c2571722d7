"""What a compression has done so far: a folder that it goes on from after it was stopped.

    checkpoint.json            what the run is of, and the sha256 of every file
    statistics-*.safetensors   of the calibration data
    curves-*.json              the options of one site each
    plan-*.json
    layer-*.safetensors        the values of one factorised layer each

Every part is deterministic given those before it, so that one that is missing is made again with the same bits. Nothing
that is read is executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .files import replacing
from .plan import Plan
from .profile import Curve, Option
from .randomness import Randomness
from .ranks import Rule
from .sites import fingerprint
from .statistics import Statistics

logger = logging.getLogger("rankwise")

MANIFEST = "checkpoint.json"
VERSION = 1
_KIND = "rankwise checkpoint"
_FILE = re.compile(r"(statistics|curves|plan|layer)-[0-9a-f]{12}\.(json|safetensors)")
# What a run leaves that is killed while it writes.
_TEMPORARY = re.compile(rf"\.({_FILE.pattern}|{re.escape(MANIFEST)})\.tmp-[0-9a-f]{{8}}")
_ANEW = "delete the folder and start anew"

Value = TypeVar("Value")
Layer = Mapping[str, Tensor]


class Done(Protocol[Value]):
    """What was made before, by the name of its site; a dictionary is one."""

    def __contains__(self, site: object, /) -> bool:
        """Whether it was made."""

    def __getitem__(self, site: str, /) -> Value:
        """What was made."""

    def __setitem__(self, site: str, value: Value, /) -> None:
        """Keep what is made now."""


@dataclass(frozen=True)
class Part(Generic[Value]):
    """A kind of thing that is kept, one file each."""

    name: str
    suffix: str
    write: Callable[[Path, Value], object]
    read: Callable[[Path], Value]


class Work:
    """The parts of a compression that are done, and the folder that keeps them; without a folder nothing is kept.

    Args:
        folder: made where it is missing; else empty, or of a run to go on with.
        resume: go on from there.

    Raises:
        ValueError: for a folder that holds something else, a checkpoint that is not asked for, damaged, or not there.

    Example:
        >>> work = Work()
        >>> work.once(PLAN, lambda: Plan(rows=()))
        Plan(rows=(), ...)
    """

    def __init__(self, folder: str | Path | None = None, resume: bool = False) -> None:
        self.folder = None if folder is None else Path(folder)
        self.run: dict[str, Any] = {}
        self.files: dict[str, list[str]] = {}  # what it is -> name of its file, and the sha256
        self._told = False
        if self.folder is None:
            if resume:
                raise ValueError("resume needs the checkpoint to go on from; name its folder")
        elif resume:
            self._read(self.folder)
        else:
            _check_empty(self.folder)

    def begin(self, model: nn.Module, data: Iterable[Any] | None, options: Mapping[str, Any]) -> None:
        """Say what the run is of, before its long work.

        Args:
            model: the dense network.
            data: what the run walks over; the same each time.
            options: all else that decides what comes out.

        Raises:
            ValueError: where the folder is of another run, naming what differs; for data that is different each time.
            OSError: where nothing can be written to the folder.
        """
        if self.folder is None:
            return
        run = json.loads(json.dumps(_run(model, data, options)))
        if self.run and self.run != run:
            differ = [
                f"{key} {_short(self.run.get(key))} there, {_short(run.get(key))} here"
                for key in {**self.run, **run}
                if self.run.get(key) != run.get(key)
            ]
            raise ValueError(
                f"checkpoint {self.folder} is of another run: {'; '.join(differ)}; go on with the same settings, or "
                "name another folder"
            )
        if self.run:
            layers = sum(key.startswith(f"{LAYERS.name} ") for key in self.files)
            there = [part.name for part in (STATISTICS, CURVES, PLAN) if part in self] + [f"{layers} factorised layers"]
            logger.info("going on from checkpoint %s, which has %s", self.folder, ", ".join(there))
        self.run = run
        self._write(self.folder)

    def __contains__(self, part: Part[Any]) -> bool:
        """Whether there is something of a kind."""
        return any(key.partition(" ")[0] == part.name for key in self.files)

    def of(self, part: Part[Value], variant: object = "") -> Done[Value]:
        """What there is of a kind by site, to be read and added to; variants know nothing of each other."""
        return {} if self.folder is None else _Kept(self, part, str(variant))

    def once(self, part: Part[Value], make: Callable[[], Value]) -> Value:
        """What was made before, else what is made now."""
        done = self.of(part)
        if "" in done:
            return done[""]
        with Randomness(
            nn.Identity()
        ).kept():  # what comes later draws the same numbers whether this is made now or not
            made = done[""] = make()
        return made

    def statistics(self, model: nn.Module, example: Any, collect: Callable[[], Statistics]) -> Statistics:
        """Statistics of the network, as if they had been collected now."""
        stats = self.once(STATISTICS, collect)
        if stats.sites.example is not None:
            return stats
        sites = replace(stats.sites, example=example)
        moments = {}
        for name, found in stats.items():
            moments[name] = _on(found, next(sites[name].layer(model).parameters()).device)
        return Statistics(moments, sites=sites, samples=stats.samples, seed=stats.seed)

    def remove(self) -> None:
        """Delete what was kept, when nobody needs it any more; files of others stay, and the folder with them."""
        if self.folder is None:
            return
        own = {MANIFEST, *(name for name, _ in self.files.values())}
        for path in list(self.folder.iterdir()):
            if path.name in own or _TEMPORARY.fullmatch(path.name):
                path.unlink()
        with suppress(OSError):  # not empty
            self.folder.rmdir()

    def keep(self, key: str, part: Part[Value], value: Value) -> None:
        """Write something. Where the disk refuses, that is told once: what was done is not lost by it."""
        assert self.folder is not None
        name = f"{part.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}{part.suffix}"
        try:
            part.write(self.folder / name, value)
            self.files[key] = [name, sha256_of(self.folder / name)]
            self._write(self.folder)
        except OSError as error:
            if not self._told:
                logger.warning(
                    "checkpoint %s misses what cannot be written (%s); the work goes on, and would do that part again "
                    "after a stop",
                    self.folder,
                    error,
                )
            self._told = True

    def _write(self, folder: Path) -> None:
        about = {_KIND: VERSION, "run": self.run, "files": self.files}
        with replacing(folder / MANIFEST) as new:
            new.write_text(json.dumps({**about, "sha256": _seal(about)}, indent=1), encoding="utf-8")

    def _read(self, folder: Path) -> None:
        path = folder / MANIFEST
        if not path.is_file():
            raise ValueError(f"there is no checkpoint {folder}; start without resuming")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            found = about.pop("sha256"), about.pop(_KIND)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is damaged, or no checkpoint of Rankwise; {_ANEW}") from error
        if found[1] != VERSION:
            raise ValueError(f"{path} is of version {found[1]!r}, this Rankwise reads version {VERSION}; {_ANEW}")
        if found[0] != _seal({_KIND: VERSION, **about}):
            raise ValueError(f"{path} is damaged; {_ANEW}")
        self.run, self.files = about["run"], about["files"]
        for key, (name, sha256) in list(self.files.items()):
            if not _FILE.fullmatch(name):
                raise ValueError(f"{path} names {name!r}, which is no file of a checkpoint; {_ANEW}")
            if not (folder / name).is_file():
                del self.files[key]
            elif sha256_of(folder / name) != sha256:
                raise ValueError(f"checkpoint file {folder / name} is damaged; delete it, and its part is done again")


class _Kept(Generic[Value]):
    """What there is of a kind in a folder."""

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


def digest(*values: Any) -> str:
    """What tells values apart: tensors by their content, in containers of any kind.

    Example:
        >>> digest({"x": torch.zeros(2)}) == digest({"x": torch.zeros(2)}) != digest({"x": torch.zeros(3)})
        True
    """
    found = hashlib.sha256()
    for part in _bytes(values):
        found.update(part)
    return found.hexdigest()[:16]


def _bytes(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)};".encode()
        dense = value.detach() if value.layout == torch.strided else value.detach().to_dense()
        if dense.numel():
            yield dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, Mapping):
        yield f"{len(value)} named;".encode()
        for name, item in value.items():
            yield from _bytes(str(name))
            yield from _bytes(item)
    elif isinstance(value, (list, tuple)):
        yield f"{len(value)} in a row;".encode()
        for item in value:
            yield from _bytes(item)
    elif is_dataclass(value):
        yield from _bytes({field.name: getattr(value, field.name) for field in fields(value)})
    elif hasattr(value, "tobytes"):  # NumPy
        yield f"{value.dtype} {value.shape};".encode()
        yield value.tobytes()
    else:
        yield f"{_plain(value)!r};".encode()


def _run(model: nn.Module, data: Iterable[Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a run from others, in plain values."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    with Randomness(model).kept():
        digested = None if data is None else _data(data)
    return {
        "rankwise": version("rankwise"),
        "torch": torch.__version__,
        "threads of torch": torch.get_num_threads(),
        "device": sorted({str(tensor.device) for _, tensor in tensors}),
        "layers": digest(fingerprint(model), re.sub(r"0x[0-9a-f]+", "", repr(model))),
        "weights": digest(tensors),
        "data": digested,
        **{name: _plain(value) for name, value in options.items()},
    }


def _data(batches: Iterable[Any]) -> str:
    """The digest of all batches in their order."""
    digests = [digest(batch) for batch in batches]
    if digests and digest(next(iter(batches))) != digests[0]:
        raise ValueError(
            "the data is another one, or in another order, each time it is walked over, so that a stopped run could "
            "not go on with the same bits: shuffle=False, or a list of batches; or leave the checkpoint out"
        )
    return digest(digests)


def _plain(value: Any) -> Any:
    """An option as JSON holds it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Rule):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor) or is_dataclass(value):
        return digest(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_empty(folder: Path) -> None:
    """Refuse to begin in a folder that somebody needs."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"checkpoint {folder} is a file; name a folder")
    if (folder / MANIFEST).exists():
        raise ValueError(f"checkpoint {folder} exists; resume from it, or delete it")
    if folder.is_dir() and not all(_TEMPORARY.fullmatch(path.name) for path in folder.iterdir()):
        raise ValueError(f"checkpoint {folder} is not empty and holds no {MANIFEST}; name a new or an empty folder")


def _seal(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _on(moments: Value, device: torch.device) -> Value:
    """Moments with their tensors on a device, and in memory of their own: those that were read lie in the file."""
    changed: dict[str, Any] = {}
    for field in fields(moments):  # type: ignore[arg-type]
        value = getattr(moments, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = value.to(device, copy=True)
        elif is_dataclass(value):
            changed[field.name] = _on(value, device)
    return replace(moments, **changed)  # type: ignore[type-var]


def _write_json(path: Path, value: Any) -> None:
    with replacing(path) as new:
        new.write_text(json.dumps(value), encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_curve(path: Path, curve: Curve) -> None:
    _write_json(path, [asdict(option) for option in curve])


def _read_curve(path: Path) -> Curve:
    return tuple(Option(**{**option, "ranks": tuple(option["ranks"])}) for option in _read_json(path))


def _write_layer(path: Path, layer: Layer) -> None:
    with replacing(path) as new:
        try:
            save_file({name: tensor.cpu().contiguous() for name, tensor in layer.items()}, new)
        except SafetensorError as error:
            raise OSError(str(error)) from error


STATISTICS: Part[Statistics] = Part("statistics", ".safetensors", lambda path, stats: stats.save(path), Statistics.load)
CURVES: Part[Curve] = Part("curves", ".json", _write_curve, _read_curve)
PLAN: Part[Plan] = Part(
    "plan", ".json", lambda path, plan: _write_json(path, plan.to_dict()), lambda path: Plan.from_dict(_read_json(path))
)
LAYERS: Part[Layer] = Part("layer", ".safetensors", _write_layer, load_file)
