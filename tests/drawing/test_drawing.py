"""Pictures as files and in pages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the extra [report] is not installed")

from rankwise.drawing import PAGE, WHITE, Bar, bars_figure, save_picture, svg
from rankwise.report import Front, Point
from rankwise.report.drawing import front_figure

BARS = (Bar("dense", 2.0, dense=True), Bar("compressed", 1.0, 0.9, 1.2))


def test_files_are_pictures_with_their_own_colours(tmp_path: Path) -> None:
    point = Point(label="50%", share=0.5, value=90.0, low=88.0, high=92.0)
    front = Front(unit="macs", title="top-1", points=(point,), reference=91.0, higher=True)
    for name, magic in (("a.svg", b"<?xml"), ("a.png", b"\x89PNG")):
        save_picture(front_figure(front, colours=WHITE), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(magic)
    text = (tmp_path / "a.svg").read_text()
    for part in ("50%", "dense", "top-1", WHITE.small, "share of the dense network"):
        assert part in text
    with pytest.raises(ValueError, match=r"a.gif is neither .svg nor .png"):
        save_picture(front_figure(front, colours=WHITE), tmp_path / "a.gif")


def test_a_picture_in_a_page_has_ids_of_its_own() -> None:
    one, two = svg(bars_figure(BARS, "ms")), svg(bars_figure(BARS, "ms"))
    assert one != two
    assert one.startswith("<svg")
    assert 'aria-hidden="true"' in one
    assert PAGE.small not in one
    assert "var(--small)" in one
    assert "1 ms" in one


def test_without_matplotlib_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'rankwise\[report\]'"):
        bars_figure(BARS, "ms")
