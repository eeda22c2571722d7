"""The file of statistics, and merging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.nets import Residual, batches_of, chains, make
from torch import nn

from rankwise import Moments, Statistics, choose, collect, factorise, find
from rankwise.statistics.accumulator import Accumulator


@pytest.fixture(scope="module")
def stats() -> Statistics:
    return collect(make(Residual), batches_of(4, 3, 8, 8), seed=3)


def tensors_of(moments: Moments) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(moments).items() if isinstance(value, torch.Tensor)}


def test_load_returns_what_save_wrote_to_the_bit(stats: Statistics, tmp_path: Path) -> None:
    path = stats.save(tmp_path / "stats.safetensors")
    loaded = Statistics.load(path)
    assert list(loaded) == list(stats)
    assert (loaded.samples, loaded.seed) == (stats.samples, 3)
    assert loaded.sites.to_dict() == stats.sites.to_dict()
    assert loaded.sites.fingerprint == stats.sites.fingerprint
    for name in stats:
        assert loaded[name].count == stats[name].count
        before, after = tensors_of(stats[name]), tensors_of(loaded[name])
        assert before.keys() == after.keys()
        for kind, value in before.items():
            assert value.dtype == after[kind].dtype
            assert torch.equal(value, after[kind]), (name, kind)
    forms = {found.second_GDD is None for found in loaded.values()}
    assert forms == {True, False}, "both forms of moments went through the file"


def test_rows_in_the_file_are_announced(stats: Statistics, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert stats.with_rows
    stats.save(tmp_path / "s")
    assert f"for {len(stats.with_rows)} of {len(stats)} sites ({stats.with_rows[0]}, ...)" in caplog.text
    caplog.clear()
    bare = stats.without_rows()
    assert caplog.text.count("determines them up to a rotation") == len(stats.with_rows)
    caplog.clear()
    bare.save(tmp_path / "s")
    assert not caplog.text


def test_a_file_without_rows_holds_no_sample_and_fits_alike(stats: Statistics, tmp_path: Path) -> None:
    """No tensor of the file has a dimension of samples."""
    from safetensors import safe_open

    path = stats.without_rows().save(tmp_path / "s")
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            kind, _, name = key.partition(":")
            site = stats.sites[name]
            G, D = site.groups, site.in_features
            assert tuple(file.get_tensor(key).shape) == {"second_GDD": (G, D, D)}.get(kind, (G, D))
    loaded, model = Statistics.load(path), make(Residual)
    assert (loaded.with_rows, loaded.samples, loaded.seed) == ((), stats.samples, stats.seed)
    plan = choose(model, stats, keep={"macs": 0.6})
    assert [(row.format, row.ranks) for row in choose(model, loaded, keep={"macs": 0.6}).rows] == [
        (row.format, row.ranks) for row in plan.rows
    ]
    ours, theirs = (chains(factorise(model, plan, source)) for source in (loaded, stats))
    for name, chain in ours.items():
        torch.testing.assert_close(chain.weight, theirs[name].weight, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(chain.bias, theirs[name].bias, rtol=1e-3, atol=1e-4)


def test_rows_of_too_many_inputs_cannot_be_left_out() -> None:
    wide = collect(nn.Sequential(nn.Linear(8200, 4)), [torch.randn(6, 8200)])
    with pytest.raises(ValueError, match=r"site '0' has 8,200 inputs, too many for a moment \(at most 8,192\)"):
        wide.without_rows()


def test_targets_survive_the_file(stats: Statistics, tmp_path: Path) -> None:
    accumulator = Accumulator(taps=9)
    accumulator.update(torch.randn(1, 40, 27), torch.randn(1, 40, 12))
    made = Statistics({"stem": accumulator.moments()}, sites=stats.sites, samples=1)
    loaded = Statistics.load(made.save(tmp_path / "stats"))["stem"]
    assert torch.equal(loaded.cross_GTD, made["stem"].cross_GTD)
    assert torch.equal(loaded.target_mean_GT, made["stem"].target_mean_GT)


def test_saving_replaces_an_older_file_and_leaves_nothing_else(stats: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "stats"
    path.write_text("old")
    stats.save(str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["stats"]
    assert len(Statistics.load(str(path))) == len(stats)


def test_a_truncated_file(stats: Statistics, tmp_path: Path) -> None:
    path = stats.save(tmp_path / "stats")
    content = path.read_bytes()
    for length in (0, 5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="stats"):
            Statistics.load(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        Statistics.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot read statistics"):
        Statistics.load(tmp_path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    for about in (None, {"kind": "weights"}):
        save_file({"a": torch.zeros(2)}, path, metadata=about)
        with pytest.raises(ValueError, match="does not hold statistics"):
            Statistics.load(path)
    path.write_text("not a tensor in sight")
    with pytest.raises(ValueError, match="cannot read statistics"):
        Statistics.load(path)


def test_another_version(tmp_path: Path) -> None:
    path = tmp_path / "newer"
    save_file({}, path, metadata={"kind": "rankwise statistics", "version": "99"})
    with pytest.raises(ValueError, match="version 99"):
        Statistics.load(path)


@pytest.mark.parametrize("lost", ["version", "counts", "sites", "samples"])
def test_metadata_that_is_missing(stats: Statistics, tmp_path: Path, lost: str) -> None:
    from safetensors import safe_open

    path = stats.save(tmp_path / "stats")
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del about[lost]
    save_file(tensors, path, metadata=about)
    with pytest.raises(ValueError, match="cannot read statistics"):
        Statistics.load(path)
    if lost not in ("counts", "sites"):
        return
    about = {**about, lost: "[1"}
    save_file(tensors, path, metadata=about)
    with pytest.raises(ValueError, match="stats"):
        Statistics.load(path)


def test_a_path_that_cannot_be_written(stats: Statistics, tmp_path: Path) -> None:
    assert stats.save(tmp_path / "new folder" / "stats").is_file()
    target = tmp_path / "taken"
    target.mkdir()
    for path in (target, tmp_path / "new folder" / "stats" / "below a file"):
        with pytest.raises(OSError, match="cannot write") as caught:
            stats.save(path)
        assert str(path) in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["new folder", "stats", "taken"]


def test_merged_halves_are_the_whole() -> None:
    model, batches = make(Residual), batches_of(4, 3, 8, 8)
    halves = [collect(model, part, positions="all") for part in (batches[:1], batches[1:])]
    merged, whole = halves[0].merge(halves[1]), collect(model, batches, positions="all")
    assert merged.samples == whole.samples == 16
    assert list(merged) == list(whole)
    for name, found in merged.items():
        assert found.count == whole[name].count
        torch.testing.assert_close(found.mean_GD, whole[name].mean_GD)
        ours, theirs = found.metrics()[0].dense(), whole[name].metrics()[0].dense()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_statistics_that_do_not_belong_together(stats: Statistics) -> None:
    other = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match="different structure"):
        stats.merge(collect(other, batches_of(6, 4)))
    part = collect(make(Residual), batches_of(4, 3, 8, 8), only={"stem"})
    with pytest.raises(ValueError, match=r"different sites.*block1.conv1"):
        stats.merge(part)
    empty = Statistics({}, sites=find(other, torch.zeros(1, 4)), samples=0)
    with pytest.raises(KeyError):
        empty["0"]
