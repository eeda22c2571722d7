"""A compression that is stopped, at any moment and as often as one likes, ends with the bits of one that was not."""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.factorisation_nets import CASES, Draws, Normal
from support.nets import batches_of, make, same_bits, unchanged
from torch import Tensor, nn

import rankwise as rw
from rankwise.work import MANIFEST, PLAN, STATISTICS, Part, Work, digest

pytestmark = pytest.mark.usefixtures("one_thread")

KEEP = {"macs": 0.5}


class StoppedError(Exception):
    """What stops a run."""


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[str]]:
    """Let the next run stop after so many parts were kept, None for never; gives the parts that it keeps."""
    keep = Work.keep

    def set_to(count: int | None) -> list[str]:
        kept: list[str] = []

        def keeps(self: Work, key: str, part: Part[Any], value: Any) -> None:
            keep(self, key, part, value)
            kept.append(key)
            if len(kept) == count:
                raise StoppedError

        monkeypatch.setattr(Work, "keep", keeps)
        return kept

    return set_to


def check_every_stop(
    run: Callable[..., tuple[nn.Module, rw.CompressReport]],
    stop: Callable[[int | None], list[str]],
    folder: Path,
    counts: Iterable[int] | None = None,
) -> list[str]:
    """A run goes on after any of its parts, and does none of those that are there again."""
    whole, report = run()
    kept = stop(None)
    noted, _ = run(checkpoint=folder / "all")
    assert same_bits(noted, whole)
    everything = list(kept)
    for count in counts or range(1, len(everything) + 1):
        here = folder / str(count)
        stop(count)
        with pytest.raises(StoppedError):
            run(checkpoint=here)
        kept = stop(None)
        small, told = run(checkpoint=here, resume=True)
        assert same_bits(small, whole)
        assert kept == everything[count:]
        assert (told.plan, told.compressed, told.sites.to_dict()) == (
            report.plan,
            report.compressed,
            report.sites.to_dict(),
        )
    return everything


@pytest.mark.parametrize("method, counts", [("sequential", None), ("one-shot", (1, 4, 6, 7, 9))])
def test_after_every_part(
    method: str, counts: Iterable[int] | None, tmp_path: Path, stop: Callable[[int | None], list[str]]
) -> None:
    build, data = CASES["chain"]
    model, batches = make(build), data()

    def run(**options: Any) -> tuple[nn.Module, rw.CompressReport]:
        with unchanged(model):
            return rw.compress(model, batches, keep={"params": 0.4}, method=method, seed=3, **options)

    kept = check_every_stop(run, stop, tmp_path, counts)
    kinds = [key.partition(" ")[0] for key in kept]
    layers = kinds.count("layer")
    assert layers >= 3
    assert kinds == ["statistics", *["curves"] * 4, "plan", *["layer"] * layers]


@pytest.mark.parametrize(
    "method, formats, options",
    [
        ("sequential", "kronecker,svd", {}),
        ("one-shot", "svd,tucker2", {"metric": "fisher"}),
        ("sequential", "svd", {"metric": "fisher"}),
        ("one-shot", "slr,svd", {"rule": "fisher"}),
    ],
)
def test_other_formats_metrics_and_rules(
    method: str, formats: str, options: dict[str, Any], tmp_path: Path, stop: Callable[[int | None], list[str]]
) -> None:
    model = make(
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 6))
    )
    batches = batches_of(16, 4, 6, 6)

    def run(**more: Any) -> tuple[nn.Module, rw.CompressReport]:
        chosen = {"formats": formats.split(","), "keep": {"params": 0.5}, **options}
        return rw.compress(model, batches, method=method, **chosen, **more)

    check_every_stop(run, stop, tmp_path, (3, 6))


def test_statistics_of_other_data_and_the_share_that_they_ask_for(
    tmp_path: Path, stop: Callable[[int | None], list[str]]
) -> None:
    build, data = CASES["chain"]
    model, batches = make(build), data()
    stats = rw.collect(model, [batch * torch.linspace(0, 2, 20) for batch in batches])

    def run(**more: Any) -> tuple[nn.Module, rw.CompressReport]:
        return rw.compress(model, batches, keep={"params": 0.4}, stats=stats, method="one-shot", **more)

    assert run()[1].plan.shrink > 0
    kept = check_every_stop(run, stop, tmp_path, (2, 6, 9))
    assert sum(key.startswith("curves") for key in kept) == 8  # of two shares
    assert not any(key.startswith("statistics") for key in kept)


def test_rows_that_are_kept_as_they_are(tmp_path: Path, stop: Callable[[int | None], list[str]]) -> None:
    model = make(lambda: nn.Sequential(nn.Conv2d(32, 64, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 16)))
    batches = batches_of(3, 32, 2, 2, count=1)
    assert len(rw.collect(model, batches).with_rows) == 2

    def run(**more: Any) -> tuple[nn.Module, rw.CompressReport]:
        return rw.compress(model, batches, keep={"params": 0.4}, method="one-shot", **more)

    check_every_stop(run, stop, tmp_path)


def test_a_network_that_draws_random_numbers(tmp_path: Path, stop: Callable[[int | None], list[str]]) -> None:
    model = make(lambda: Draws(Normal()))
    loader = torch.utils.data.DataLoader(torch.cat(batches_of(64, 24)), batch_size=64)  # draws a seed in every pass

    def run(**more: Any) -> tuple[nn.Module, rw.CompressReport]:
        torch.manual_seed(5)
        return rw.compress(model, loader, keep={"params": 0.5}, **more)

    check_every_stop(run, stop, tmp_path)


def test_stopped_again_and_again(tmp_path: Path, stop: Callable[[int | None], list[str]]) -> None:
    model, batches = make(CASES["chain"][0]), batches_of(16, 20)
    whole, _ = rw.compress(model, batches, keep=KEEP)
    for attempt in range(100):
        stop(2 + attempt % 3)
        try:
            small, _ = rw.compress(model, batches, keep=KEEP, checkpoint=tmp_path / "work", resume=attempt > 0)
            break
        except StoppedError:
            continue
    assert attempt > 2
    assert same_bits(small, whole)


@pytest.mark.parametrize("where", ["statistics", "profile", "factorise"])
def test_stopped_from_the_keyboard(where: str, tmp_path: Path) -> None:
    model, batches = make(CASES["concat"][0]), batches_of(8, 3, 8, 8)
    whole, _ = rw.compress(model, batches, keep=KEEP)

    def interrupted(items: Iterable[Any], name: str) -> Iterable[Any]:
        for number, item in enumerate(items):
            if name == where and number == 2:
                raise KeyboardInterrupt
            yield item

    with unchanged(model), pytest.raises(KeyboardInterrupt):
        rw.compress(model, batches, keep=KEEP, checkpoint=tmp_path / "work", progress=interrupted)
    small, _ = rw.compress(model, batches, keep=KEEP, checkpoint=tmp_path / "work", resume=True)
    assert same_bits(small, whole)


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make(CASES["chain"][0])


BATCHES = batches_of(64, 20)


def run(model: nn.Module, folder: Path, batches: Any = None, **options: Any) -> nn.Module:
    wanted = {"keep": {"params": 0.4}, "method": "one-shot", **options}
    return rw.compress(model, BATCHES if batches is None else batches, checkpoint=folder, **wanted)[0]


def heavier(model: nn.Module) -> nn.Module:
    other = make(CASES["chain"][0])
    with torch.no_grad():
        other.get_parameter("net.6.weight")[0, 0] += 1e-6
    return other


def otherwise(model: nn.Module) -> nn.Module:
    other = make(CASES["chain"][0])
    other.net[1] = nn.LeakyReLU(0.2)
    return other


@pytest.mark.parametrize(
    "change, told",
    [
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"keep": {"params": 0.5}}, "keep {'params': 0.4} there, {'params': 0.5} here"),
        ({"method": "sequential"}, "method 'one-shot' there, 'sequential' here"),
        ({"shrink": 0.1}, "shrink None there, 0.1 here"),
        ({"positions": 7}, "positions 'auto' there, 7 here"),
        ({"rule": "uniform"}, "rule None there, 'uniform' here"),
        ({"ignore": ["net.0"]}, "ignore None there, ['net.0'] here"),
        ({"pin": {"net.0": ("svd", (4,))}}, "pin None there"),
        ({"example": torch.zeros(2, 20)}, "example "),
        ({"batches": BATCHES[::-1]}, "data "),
        ({"batches": [torch.cat(BATCHES)]}, "data "),
        ({"batches": [*BATCHES[:3], BATCHES[3] + 1e-6]}, "data "),
        ({"model": heavier}, "weights "),
        ({"model": otherwise}, "layers "),
    ],
)
def test_a_run_of_something_else(model: nn.Module, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    run(model, tmp_path / "work")
    before = {path.name: path.read_bytes() for path in (tmp_path / "work").iterdir()}
    other = change.pop("model", lambda model: model)(model)
    with pytest.raises(ValueError, match="is of another run") as error:
        run(other, tmp_path / "work", resume=True, **change)
    assert told in str(error.value)
    assert "resume with the same settings, or name another folder" in str(error.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "work").iterdir()} == before


def test_another_number_of_threads(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(model, tmp_path / "work")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.raises(ValueError, match="threads of torch 1 there, 7 here"):
        run(model, tmp_path / "work", resume=True)


def test_another_version(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(model, tmp_path / "work")
    monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.raises(ValueError, match=r"torch '.*' there, '9.9' here"):
        run(model, tmp_path / "work", resume=True)


def test_files_that_are_damaged(model: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    whole = run(model, folder)
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    assert {path.name.partition("-")[0] for path in files} == {"statistics", "curves", "plan", "layer"}
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        for damaged in (content[:-1], b"", content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="is damaged; delete it") as error:
                run(model, folder, resume=True)
            assert path.name in str(error.value)
        path.unlink()  # as the message says
        assert same_bits(run(model, folder, resume=True), whole)


def test_a_manifest_that_is_damaged(model: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    run(model, folder)
    text = (folder / MANIFEST).read_text()
    other = json.loads(text)
    first = next(iter(other["files"]))
    for damaged in (
        *(text[:-10], "", "[]", "3", "{}", text.replace('"seed": 0', '"seed": 1')),
        text.replace('"version": 1', '"version": 2'),
        json.dumps({**other, "files": {**other["files"], first: ["../x", "0"]}}),
    ):
        (folder / MANIFEST).write_text(damaged)
        with pytest.raises(ValueError, match="delete the folder and start anew") as error:
            run(model, folder, resume=True)
        assert MANIFEST in str(error.value)


def test_folders_that_are_not_ours(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume needs the checkpoint"):
        rw.compress(model, BATCHES, keep=KEEP, resume=True)
    with pytest.raises(ValueError, match=r"there is no checkpoint .*work"):
        run(model, tmp_path / "work", resume=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        run(model, tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "plan-000000000000.json").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and holds no checkpoint\.json"):
        run(model, tmp_path / "full")
    run(model, tmp_path / "work")
    with pytest.raises(ValueError, match="exists; resume from it, or delete it"):
        run(model, tmp_path / "work")
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["plan-000000000000.json"]


def test_data_that_is_different_each_time(model: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.cat(BATCHES), batch_size=16, shuffle=True)
    with pytest.raises(ValueError, match=r"differs from pass to pass.*shuffle=False"):
        run(model, tmp_path / "work", loader)
    assert not (tmp_path / "work").exists()


# Files --------------------------------------------------------------------------------------------------------------


def test_without_a_checkpoint_nothing_is_written(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def fails(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("rankwise.work.signature", fails)  # nor is anything read for it
    monkeypatch.setattr(Work, "keep", fails)
    work = Work()
    work.begin(model, None, {})
    work.remove()
    assert not list(tmp_path.iterdir())
    assert STATISTICS not in work


def test_only_what_is_ours_is_removed(model: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    run(model, folder)
    left(folder / f".{MANIFEST}.tmp-0123abcd")
    left(folder / ".layer-0123456789ab.safetensors.tmp-0123abcd")
    work = Work(folder, resume=True)
    assert PLAN in work
    mine = [folder / "notes.txt", folder / "plan-0123456789ab.json", folder / ".notes.tmp-0123abcd"]
    for path in mine:
        path.write_text("mine")
    work.remove()
    assert set(folder.iterdir()) == set(mine)
    for path in mine:
        path.unlink()
    folder.rmdir()
    run(model, folder)
    Work(folder, resume=True).remove()
    assert not folder.exists()


def left(folder: Path) -> None:
    """What a run leaves that is killed while it writes."""
    folder.mkdir()
    (folder / "half").write_text("{")


def test_a_run_that_was_killed_before_its_first_file(model: nn.Module, tmp_path: Path) -> None:
    left(tmp_path / f".{MANIFEST}.tmp-0123abcd")
    run(model, tmp_path)
    Work(tmp_path, resume=True).remove()
    assert not tmp_path.exists()


def test_a_full_disk_does_not_cost_the_work(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(model, tmp_path / "whole")
    save = rw.Statistics.save

    def full(self: rw.Statistics, path: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(rw.Statistics, "save", full)
    with caplog.at_level(logging.WARNING, "rankwise"):
        assert same_bits(run(model, tmp_path / "work"), whole)
    assert sum("No space left" in record.message for record in caplog.records) == 1
    there = Work(tmp_path / "work", resume=True)
    assert PLAN in there
    assert STATISTICS not in there
    monkeypatch.setattr(rw.Statistics, "save", save)
    assert same_bits(run(model, tmp_path / "work", resume=True), whole)


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")

    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(sys.modules["rankwise.session"], "collect", fails)
    with pytest.raises(OSError, match="file"):
        run(model, tmp_path / "file" / "work")


def test_digests() -> None:
    a = torch.arange(6.0).view(2, 3)
    same: list[Any] = [a, a.clone(), a.T.contiguous().T, a.double().float()]
    assert len({digest(each) for each in same}) == 1
    other: list[Any] = [
        *(a, a.T, a.view(3, 2), a.double(), [a], (a, a), {"x": a}, {"y": a}, a.numpy(), a.view(6), a[:0], a[0, 0]),
        *({"x": a, "n": 1}, {"x": a, "n": 2}, {"x": a, "n": True}, {"x": a, "n": "1"}, None, a.to_sparse() * 2),
    ]
    assert len({digest(each) for each in other}) == len(other)


class Scaled(nn.Module):
    """Takes a mapping with an option that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(20, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.two(torch.relu(self.one(x * scale)))


def test_options_within_the_batches_are_data(tmp_path: Path) -> None:
    net = make(Scaled)
    run(net, tmp_path / "work", [{"x": batch, "scale": 1.0} for batch in BATCHES])
    with pytest.raises(ValueError, match="data "):
        run(net, tmp_path / "work", [{"x": batch, "scale": 1.5} for batch in BATCHES], resume=True)
