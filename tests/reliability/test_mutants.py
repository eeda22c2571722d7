"""Files that were damaged or made to do harm: a load gives the same content, or one short error, soon and in bounds."""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import mutants
from support.counts import Tally
from support.writers import OLD, WRITERS, fresh

import rankwise as rw
from rankwise.artifact import read
from rankwise.files import digest
from rankwise.latency.roofline import Device
from rankwise.ranks.studies import open_study
from rankwise.statistics import Statistics
from rankwise.training.checkpoint import read_checkpoint
from rankwise.work import CURVES, LAYERS, PLAN, Work
from rankwise.work import STATISTICS as STATS

SECONDS, MEGABYTES, CHARACTERS = 2.0, 500, 1000
Mutant = Callable[[bytes, random.Random], bytes]
PLAIN: tuple[Mutant, ...] = (mutants.bits, mutants.bits, mutants.bits, mutants.cut, mutants.spliced, mutants.extended)
PARTS: dict[str, Any] = {part.name: part for part in (CURVES, LAYERS, PLAN, STATS)}
WRITE = {writer.name: writer.write for writer in WRITERS}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file.

    Attributes:
        name: as the table says it.
        write: writes it into a folder and gives the file.
        load: what a folder's file holds, as one value that can be compared.
        mutants: kinds of changes.
        sealed: whether the file knows its content, so that no change of it can be loaded.
    """

    name: str
    write: Callable[[Path], Path]
    load: Callable[[Path], Any]
    mutants: tuple[Mutant, ...] = PLAIN
    sealed: bool = True

    def __str__(self) -> str:
        return self.name


def _artifact(folder: Path, storage: str, name: str) -> Path:
    WRITE[f"artifact {storage}"](folder / "out", OLD)
    return folder / "out" / name


def _network(folder: Path) -> str:
    found, made = read(folder / "out"), rw.load(fresh(), folder / "out")
    return digest([found.to_json(), dict(made.state_dict())])


def _seal(plain: dict[str, Any]) -> None:
    plain.pop("checksum", None)
    plain["checksum"] = digest(plain)


def _one(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        WRITE[name](folder / "file", OLD)
        return folder / "file"

    return write


def _statistics(folder: Path) -> str:
    found = Statistics.load(folder / "file")
    return digest([found.samples, found.seed, found.sites.to_dict(), dict(found)])


def _study(folder: Path) -> Path:
    with open_study(str(folder / "file"), {"a": 1.0}) as study:
        from rankwise.ranks.studies import minimise

        minimise(study, lambda x: x["x"] ** 2, {"x": 1.0}, most=4.0, trials=3, startup=3, seed=0)
    return folder / "file"


def _studied(folder: Path) -> Any:
    with open_study(str(folder / "file"), {"a": 1.0}) as study:
        return [(trial.number, trial.params, trial.value, trial.state.name) for trial in study.trials]


def _cache(folder: Path) -> Path:
    WRITE["times"](folder, OLD)
    return next(folder.glob("*.json"))


def _times(folder: Path) -> Any:
    """A damaged cache is an empty one: what it says must be right, or nothing."""
    from support.writers import _cache as cache

    found = cache(folder)
    return {each: found[f"layer{each}"].median for each in (0, 1) if f"layer{each}" in found}


KINDS = (
    Kind(name="rankwise.json", write=partial(_artifact, storage="plain", name="rankwise.json"), load=_network,
         mutants=(*PLAIN, mutants.of_json)),
    Kind(name="rankwise.json, coded", write=partial(_artifact, storage="int8+entropy", name="rankwise.json"),
         load=_network, mutants=(*PLAIN, mutants.of_json)),
    # whoever changes the checksum too is held to the schema: what is loaded is at least an artifact
    Kind(name="rankwise.json, forged", write=partial(_artifact, storage="entropy", name="rankwise.json"), load=_network,
         mutants=(partial(mutants.of_json, seal=_seal),), sealed=False),
    Kind(name="model.safetensors", write=partial(_artifact, storage="plain", name="model.safetensors"), load=_network,
         mutants=(*PLAIN, mutants.of_safetensors)),
    Kind(name="model.safetensors, coded", write=partial(_artifact, storage="entropy", name="model.safetensors"),
         load=_network),
    Kind(name="statistics", write=_one("statistics"), load=_statistics, mutants=(*PLAIN, mutants.of_safetensors)),
    Kind(name="checkpoint", write=_one("checkpoint"), load=lambda folder: digest(read_checkpoint(folder / "file"))),
    Kind(name="plan", write=_one("plan"), load=lambda folder: rw.Plan.load(folder / "file"),
         mutants=(*PLAIN, mutants.of_yaml), sealed=False),
    Kind(name="roofline", write=_one("roofline"), load=lambda folder: Device.load(folder / "file"),
         mutants=(*PLAIN, mutants.of_yaml), sealed=False),
    Kind(name="measured times", write=_cache, load=_times, mutants=(*PLAIN, mutants.of_json)),
    Kind(name="study", write=_study, load=_studied),
)  # fmt: skip
SLOW = pytest.mark.reliability


def test_every_part_of_a_compression_that_is_damaged(tmp_path: Path, tally: Tally) -> None:
    """A folder that a run goes on from: each of its files by itself, also when it changes after the folder was read."""
    work, what = tmp_path / "work", "mutants of a compression's checkpoint"
    rw.compress(fresh(), [torch.randn(16, 12) for _ in range(2)], keep={"macs": 0.9}, checkpoint=work)

    def parts(there: Work) -> str:
        found = {}
        for key in there.files:
            name, _, rest = key.partition(" ")
            variant, _, site = rest.rpartition(":")
            found[key] = digest(there.of(PARTS[name], variant)[site], loose=True)
        return digest([there.run, found])

    wanted = parts(Work(work, resume=True))
    files = sorted(path for path in work.iterdir() if path.is_file())
    assert {path.name.partition("-")[0] for path in files} == {"checkpoint.json", *PARTS}
    for path in files:
        content = path.read_bytes()
        for number in range(30):
            there = Work(work, resume=True)
            path.write_bytes(PLAIN[number % len(PLAIN)](content, random.Random(number)))
            for look in (lambda there=there: parts(there), lambda: parts(Work(work, resume=True))):
                how = "as before"
                try:
                    assert look() == wanted, f"{path.name}, mutant {number}"
                except ValueError as error:
                    how, told = "refused", str(error)
                assert how == "as before" or (path.name in told and len(told) < CHARACTERS), f"{path.name}, {number}"
                tally(what, "tried", 1)
                tally(what, how, 1)
            path.write_bytes(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("tries", [20, pytest.param(1000, marks=SLOW)])
def test_mutants(kind: Kind, tries: int, tmp_path: Path, tally: Tally) -> None:
    torch.set_num_threads(1)
    path = kind.write(tmp_path)
    content = path.read_bytes()
    wanted = kind.load(tmp_path)
    tries = tries // 5 if kind.name == "study" else tries
    for number in range(tries):
        chance = random.Random(number)
        mutant = kind.mutants[number % len(kind.mutants)](content, chance)
        path.write_bytes(mutant)
        for side in tmp_path.glob("file-*"):  # journals of SQLite
            side.unlink()
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        how = "refused"
        try:
            found = kind.load(tmp_path)
            same = found == wanted or (kind.name == "measured times" and found == {})
            how = "as before" if same else "replaced"
            assert same or not kind.sealed, f"mutant {number}: {mutant[:200]!r}"
        except ValueError as error:
            told = str(error)
        if how == "refused":
            assert 0 < len(told) < CHARACTERS, f"mutant {number}: {len(told)} characters"
        assert time.process_time() - start < SECONDS, f"mutant {number}"
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert after - before < MEGABYTES * (1024 if sys.platform != "darwin" else 1 << 20), f"mutant {number}"
        tally(f"mutants of {kind.name}", "tried", 1)
        tally(f"mutants of {kind.name}", how, 1)
    path.write_bytes(content)
    assert kind.load(tmp_path) == wanted
