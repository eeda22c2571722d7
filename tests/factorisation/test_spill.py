"""Activations in memory up to a cap, in files above it; no file outlives the store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support.factorisation_nets import CASES
from support.nets import make

import rankwise as rw
from rankwise.factorisation import spill
from rankwise.factorisation.spill import ActivationStore


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("case", CASES)
def test_spilling_changes_nothing(case: str, temporary: Path) -> None:
    build, data = CASES[case]
    model, batches = make(build), data()
    stats = rw.collect(model, batches)
    plan = rw.choose(model, stats, keep={"params": 0.45}, include="re:.*")
    left: list[list[Path]] = []
    folders: list[int] = []

    def look(site: str) -> None:
        left.append(files(temporary))
        folders.append(len(list(temporary.iterdir())))

    tiny = rw.factorise(
        model,
        plan,
        stats,
        data=batches,
        engine="graph",
        spill_above=1,
        step=look,
    )
    assert not any(left)
    assert max(folders) > 0 or len(plan.factorised) == 1  # it did spill
    assert list(temporary.iterdir()) == []
    roomy = rw.factorise(model, plan, stats, data=batches, engine="graph")
    assert list(temporary.iterdir()) == []
    for a, b in zip(tiny.state_dict().values(), roomy.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_files_are_gone_after_an_error(temporary: Path) -> None:
    build, data = CASES["residual"]
    model, batches = make(build), data()
    plan = rw.choose(model, rw.collect(model, batches), keep={"params": 0.6})
    steps: list[str] = []

    def stop(site: str) -> None:
        steps.append(site)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rw.factorise(model, plan, data=batches, engine="graph", spill_above=1, step=stop)
    assert list(temporary.iterdir()) == []


VALUES: dict[str, Any] = {
    "tensor": torch.randn(3, 4),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(2.5),
    "half": torch.randn(5).half(),
    "integers": torch.arange(6).view(2, 3),
    "truth": torch.tensor([True, False]),
    "transposed": torch.randn(3, 4).mT,
    "nested": (torch.randn(2), {"a": [torch.ones(3), None], "b": 4}),
    "no tensor": ("text", 1.5, None),
}


@pytest.mark.parametrize("cap", [0, 2**20])
@pytest.mark.parametrize("kind", VALUES)
def test_values_come_back(kind: str, cap: int, temporary: Path) -> None:
    with ActivationStore(cap) as store:
        store.put("key", VALUES[kind])
        assert "key" in store
        assert_same(store.get("key"), VALUES[kind])
        store.drop("key")
        assert "key" not in store
        assert not files(temporary)
    assert list(temporary.iterdir()) == []


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


def test_memory_is_counted(temporary: Path) -> None:
    with ActivationStore(cap=100) as store:
        store.put("a", torch.zeros(20))
        assert (store.resident, store.spilled) == (80, 0)
        store.put("b", torch.zeros(10))
        assert (store.resident, store.spilled) == (80, 40)
        assert not files(temporary)  # it has no name any more
        store.put("a", torch.zeros(5))  # takes the place of the old value
        assert store.resident == 20
        store.drop("b")
        assert not files(temporary)
        store.drop("b")
        store.drop("never there")
        assert store.resident == 20


def test_a_file_is_a_view_that_can_be_written(temporary: Path) -> None:
    """In-place operations on a stored activation are seen by whoever reads it next, as they are in memory."""
    with ActivationStore(cap=0) as store:
        store.put("x", torch.zeros(4))
        store.get("x").add_(1)
        assert torch.equal(store.get("x"), torch.ones(4))


def test_files_that_cannot_be_mapped_all_the_time_keep_their_names(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "MOST_MAPPED", 1)
    with ActivationStore(cap=0) as store:
        for key in range(3):
            store.put(key, torch.full((4,), float(key)))
        assert len(files(temporary)) == 2
        store.get(2).add_(1)
        assert [float(store.get(key)[0]) for key in range(3)] == [0, 1, 3]
        store.drop(0)
        store.put(3, torch.zeros(4))
        assert len(files(temporary)) == 2
        store.drop(2)
        assert len(files(temporary)) == 1
    assert list(temporary.iterdir()) == []
