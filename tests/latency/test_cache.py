"""The file of measured times: what it is keyed by, and that it is replaced as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from rankwise.latency import Latency, get_engine
from rankwise.latency.cache import Cache, cache_folder

LAYER = nn.Linear(2, 2)
TIME = Latency(median=2.0, low=1.0, high=3.0)


def test_times_come_back(tmp_path: Path) -> None:
    cache = Cache(get_engine("torch"), LAYER, folder=tmp_path)
    cache.add({"conv": TIME})
    again = Cache(get_engine("torch"), LAYER, folder=tmp_path)
    assert "conv" in again
    assert "fc" not in again
    assert again["conv"] == TIME


def test_two_processes_add_to_one_file(tmp_path: Path) -> None:
    one, other = (Cache(get_engine("torch"), LAYER, folder=tmp_path) for _ in range(2))
    one.add({"a": TIME})
    other.add({"b": TIME})
    assert all(name in Cache(get_engine("torch"), LAYER, folder=tmp_path) for name in "ab")


def test_what_it_is_true_for_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [
        Cache(get_engine("torch"), LAYER, folder=tmp_path).path,
        Cache(get_engine("torch"), LAYER, 1 << 20, folder=tmp_path).path,
        Cache(get_engine("torch", threads=2), LAYER, folder=tmp_path).path,
        Cache(get_engine("onnxruntime"), LAYER, folder=tmp_path).path,
    ]
    monkeypatch.setattr("rankwise.latency.engine.version", lambda name: "99")
    paths.append(Cache(get_engine("torch"), LAYER, folder=tmp_path).path)
    monkeypatch.setattr("rankwise.latency.engine.processor", lambda: "another one")
    paths.append(Cache(get_engine("torch"), LAYER, folder=tmp_path).path)
    assert len(set(paths)) == 6


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert Cache(get_engine("torch"), LAYER).path.parent == tmp_path / "latency"
    monkeypatch.delenv("RANKWISE_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "rankwise"


def test_a_damaged_file_is_told_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(get_engine("torch"), LAYER, folder=tmp_path)
    cache.add({"a": TIME})
    whole = cache.path.read_text(encoding="utf-8")
    for text in ('{"layers": {"a": {"median": 1}}}', whole.replace("2.0", "2.5"), whole[:-20], "[" * 9999, "\0"):
        cache.path.write_text(text, encoding="utf-8")
        caplog.clear()
        again = Cache(get_engine("torch"), LAYER, folder=tmp_path)
        assert "a" not in again
        assert "its times are measured again" in caplog.text
    again.add({"b": TIME})
    assert "b" in Cache(get_engine("torch"), LAYER, folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_told_and_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(get_engine("torch"), LAYER, folder=tmp_path / "file" / "below")
    cache.add({"a": TIME})
    assert cache["a"] == TIME
    assert "measured times are not stored: " in caplog.text


def test_a_network_on_a_graphics_card_has_a_file_of_its_own(tmp_path: Path) -> None:
    elsewhere = nn.Linear(2, 2, device="meta")
    assert Cache(get_engine("torch"), LAYER, folder=tmp_path).path != (
        Cache(get_engine("torch"), elsewhere, folder=tmp_path).path
    )
