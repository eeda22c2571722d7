"""Files of an earlier version still load, to the same values; `stored/make.py` wrote them."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import make
from stored.make import HERE, PINS, Pictures, Words, exact, made_of, pictures, words

import rankwise as rw
from rankwise.latency import Latency
from rankwise.latency.cache import Cache
from rankwise.latency.roofline import Device, RooflineEngine
from rankwise.training.checkpoint import read_checkpoint
from rankwise.work import Work

pytestmark = pytest.mark.usefixtures("one_thread")

EXPECTED = json.loads((HERE / "expected.json").read_text())


def near(values: list[float]) -> Any:
    """Equal but for what another machine rounds."""
    return pytest.approx(values, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["pictures", "coded", "words"])
def test_artifacts(name: str) -> None:
    dense, batches = (Words(), words()) if name == "words" else (Pictures(), pictures())
    assert made_of(rw.load(exact(dense), HERE / name), batches) == near(EXPECTED[name])
    manifest = rw.artifact.read(HERE / name)
    if name != "words":
        assert manifest.figures == {"agreement": 0.5}
        assert manifest.plan == rw.Plan.load(HERE / "plan.yaml")
        assert {chain.names[0]: chain.format for chain in manifest.structure} == {
            site: pin.partition(":")[0] for site, pin in PINS.items()
        }


def test_a_plan_is_applied() -> None:
    plan = rw.Plan.load(HERE / "plan.yaml")
    assert {row.site: f"{row.format}:{','.join(map(str, row.ranks))}" for row in plan.rows} == PINS
    assert (plan.keep, plan.rule, plan.metric, plan.planned["params"]) == ({"macs": 0.95}, "knapsack", "input", 350)
    stats = rw.Statistics.load(HERE / "statistics.safetensors")
    assert made_of(rw.factorise(exact(Pictures()), plan, stats), pictures()) == near(EXPECTED["pictures"])


def test_statistics_are_those_of_today() -> None:
    for name, model, batches in (("statistics", Pictures(), pictures()), ("words", Words(), words())):
        old = rw.Statistics.load(HERE / f"{name}.safetensors")
        new = rw.collect(exact(model), batches, gradients=name == "statistics")
        assert old.sites.to_dict() == new.sites.to_dict()
        assert (old.samples, old.seed, old.keys()) == (new.samples, new.seed, new.keys())
        for site, moments in old.items():
            for field, value in vars(moments).items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(value, getattr(new[site], field), rtol=1e-3, atol=1e-5)
    assert old["words"].lookups_V is not None


def test_a_stopped_healing_goes_on(tmp_path: Path) -> None:
    file = Path(shutil.copy(HERE / "heal.pt", tmp_path))
    assert read_checkpoint(file)["step"] == 4
    healed, report = make.heal(HERE, checkpoint=file, resume=True)
    told = EXPECTED["healed"]
    assert (report.before, report.after) == (near(told["before"]), near(told["after"]))
    assert report.after < report.before
    assert made_of(healed.eval(), pictures()) == near(told["outputs"])


@pytest.mark.parametrize("lost", ["", "plan", "layer", "statistics"])
def test_a_stopped_compression_goes_on(lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is read and not done again: where the plan is lost the curves, where a layer is lost the plan."""
    work = shutil.copytree(HERE / "work", tmp_path / "work")
    for path in work.glob(f"{lost}-*"):
        path.unlink()
    there = {path.name: path.stat().st_mtime_ns for path in work.iterdir() if path.name != "checkpoint.json"}
    # Under another release of PyTorch the checkpoint is refused, for its bits may be others.
    monkeypatch.setattr(torch, "__version__", Work(work, resume=True).run["torch"])
    small, _ = make.compress(work, resume=True)
    assert made_of(small, pictures()) == near(EXPECTED["compressed"])
    assert there.items() <= {path.name: path.stat().st_mtime_ns for path in work.iterdir()}.items()
    kinds = Counter(path.name.partition("-")[0] for path in work.glob("*-*"))
    assert kinds == {"statistics": 1, "curves": 4, "plan": 1, "layer": 2}


def test_a_search_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra search is not installed")
    (tmp_path / "study.db").write_bytes(gzip.decompress((HERE / "study.db.gz").read_bytes()))
    tried: list[rw.Plan] = []

    def chosen_by(plan: rw.Plan) -> float:
        tried.append(plan)
        return make.chosen_by(plan)

    plan = make.search(tmp_path, rw.Statistics.load(HERE / "statistics.safetensors"), chosen_by)
    assert {row.site: list(row.ranks) for row in plan.rows} == EXPECTED["searched"]
    assert not tried  # all trials are in the file


def test_measured_times_and_a_described_device(tmp_path: Path) -> None:
    device = Device.load(HERE / "device.yaml")
    assert device == Device(name="paper", peak=1e9, bandwidth=1e12, tile=16, overhead=1e-6)
    cache = Cache(RooflineEngine(device), torch.nn.Linear(2, 2), folder=HERE)
    assert cache["a layer"] == Latency(median=2.0, low=1.0, high=3.0)


def test_verify_knows_them() -> None:
    for name, kind in (
        ("pictures", "artifact"),
        ("plan.yaml", "plan"),
        ("statistics.safetensors", "statistics"),
        ("heal.pt", "checkpoint of a training"),
        ("work", "checkpoint of a compression"),
    ):
        assert rw.verify(HERE / name).kind == kind
