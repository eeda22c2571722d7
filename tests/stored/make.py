"""Stored files of every kind, as one version writes them, for `test_stored.py` to read with later ones.

Those beside this script are of commit b3fc2db, before modules were put together by concept; the measured
times are of a later one, since times of layers are taken in another way by now and earlier ones are not read:

    PYTHONPATH=<checkout of b3fc2db>/src python tests/stored/make.py

Networks and data are exact numbers, the same on every machine, so that a stored file knows them again by their digests.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rankwise as rw

HERE = Path(__file__).parent
PINS = {"narrow": "tucker2:3,2", "wide": "spatial_svd:4", "hidden": "slr:2,2,4,6", "out": "svd:3"}
KEEP = {"params": 0.7}
HEALING: dict[str, Any] = {"epochs": 3, "batch": 8, "every": 2, "seed": 1}
SEARCH = "bayesian:trials=3"


class Pictures(nn.Module):
    """A layer for each of four formats, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.wide = nn.Conv2d(4, 8, 3, bias=False)
        self.hidden, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.wide(F.relu(self.norm(self.narrow(x)))))
        return self.out(F.relu(self.hidden(y.mean((2, 3)))))


class Words(nn.Module):
    """A lookup table, its tied head, and a layer between them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.head = nn.Embedding(24, 8), nn.Linear(8, 8), nn.Linear(8, 24, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.words(tokens))))


def numbers(*shape: int, start: int) -> Tensor:
    """Sixty-fourths from -1 to 1 in no order, which every machine computes alike."""
    count = torch.Size(shape).numel()
    return ((torch.arange(start, start + count) ** 2 * 37 % 127 - 63) / 64).view(shape)


def exact(model: nn.Module) -> nn.Module:
    """The model with numbers that are the same everywhere."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(numbers(*parameter.shape, start=1000 * index) / (1 if parameter.dim() > 1 else 8))
    return model.eval()


def pictures() -> list[Tensor]:
    return list(numbers(24, 2, 5, 5, start=7).split(8))


def words() -> list[Tensor]:
    return list((torch.arange(96) ** 2 * 5 % 24).view(24, 4).split(8))


def chosen_by(plan: rw.Plan) -> float:
    """A loss that likes large ranks in the last layer."""
    return sum((row.error or 0.0) * (4 if row.site == "out" else 1) for row in plan.rows)


class StoppedError(Exception):
    """What stops a run."""


def stop_at(step: int) -> Any:
    def look(stage: str, seen: Any) -> None:
        if seen.step == step:
            raise StoppedError

    return look


def stop_before_layers(items: Any, name: str) -> Any:
    """Lets a compression factorise one layer."""
    for number, item in enumerate(items):
        if name == "factorise" and number == 1:
            raise StoppedError
        yield item


def made_of(model: nn.Module, batches: list[Tensor]) -> list[float]:
    with torch.no_grad():
        return [round(float(number), 6) for number in model(batches[0][:2]).flatten()[::5]]


def heal(folder: Path, **more: Any) -> tuple[nn.Module, Any]:
    """Heal the stored artifact."""
    dense = exact(Pictures())
    return rw.heal(rw.load(exact(Pictures()), folder / "pictures"), dense, torch.cat(pictures()), **HEALING, **more)


def compress(folder: Path, **more: Any) -> tuple[nn.Module, Any]:
    """The compression that is stored half done."""
    return rw.compress(exact(Pictures()), pictures(), keep=KEEP, formats=["svd"], checkpoint=folder, **more)


def search(folder: Path, stats: rw.Statistics, evaluate: Callable[[rw.Plan], float]) -> rw.Plan:
    """The search for a plan that is stored half done."""
    options: Any = {"keep": KEEP, "formats": ["svd"], "evaluate": evaluate}
    return rw.choose(exact(Pictures()), stats, rule=f"{SEARCH},study={folder / 'study.db'}", **options)


def measured(folder: Path) -> None:
    from rankwise.latency import Latency
    from rankwise.latency.cache import Cache
    from rankwise.latency.roofline import Device, Roofline

    device = Device(name="paper", peak=1e9, bandwidth=1e12, tile=16, overhead=1e-6)
    device.save(folder / "device.yaml")
    Cache(Roofline(device), nn.Linear(2, 2), folder=folder).add({"a layer": Latency(median=2.0, low=1.0, high=3.0)})


def make(folder: Path) -> None:
    """Write all files."""
    expected: dict[str, Any] = {}
    dense = exact(Pictures())
    stats = rw.collect(dense, pictures(), gradients=True)
    stats.save(folder / "statistics.safetensors")
    tied = rw.collect(exact(Words()), words())
    tied.save(folder / "words.safetensors")
    plan = rw.choose(dense, stats, pin=PINS, keep={"macs": 0.95})
    plan.save(folder / "plan.yaml")
    small = rw.factorise(dense, plan, stats)
    for storage in ("plain", "int8+entropy"):
        name = {"plain": "pictures", "int8+entropy": "coded"}[storage]
        rw.save(small, folder / name, plan=plan, figures={"agreement": 0.5}, storage=storage)
        expected[name] = made_of(rw.load(exact(Pictures()), folder / name), pictures())
    both = rw.factorise(
        exact(Words()), rw.choose(exact(Words()), tied, keep={"params": 0.9}, pin={"words": "svd:4"}), tied
    )
    rw.save(both, folder / "words")
    expected["words"] = made_of(both.eval(), words())

    healed, report = heal(folder)
    expected["healed"] = {"before": report.before, "after": report.after, "outputs": made_of(healed.eval(), pictures())}
    with suppress(StoppedError):
        heal(folder, checkpoint=folder / "heal.pt", progress=stop_at(4))

    whole, _ = rw.compress(dense, pictures(), keep=KEEP, formats=["svd"])
    expected["compressed"] = made_of(whole, pictures())
    with suppress(StoppedError):
        compress(folder / "work", progress=stop_before_layers)

    plan = search(folder, stats, chosen_by)
    expected["searched"] = {row.site: list(row.ranks) for row in plan.rows}
    pack(folder / "study.db")
    measured(folder)
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def pack(database: Path) -> None:
    """Compressed, since most of a small database is empty pages."""
    with gzip.GzipFile(f"{database}.gz", "wb", mtime=0) as packed:
        packed.write(database.read_bytes())
    database.unlink()


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["RANKWISE_CACHE"] = str(HERE)
    for old in HERE.iterdir():
        if old.suffix != ".py" and old.is_file():
            old.unlink()
        elif old.is_dir():
            shutil.rmtree(old)
    make(HERE)
