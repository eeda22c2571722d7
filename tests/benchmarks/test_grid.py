"""Kinds of layers x formats x types, at full rank: a diagonal of the grid, and with the slow tests all of it."""

from __future__ import annotations

import copy

import pytest
import torch
from benchmarks import grid
from torch import nn

import rankwise as rw

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]


def test_a_diagonal_has_no_faults(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    wanted = grid.diagonal()
    for place, names in enumerate((grid.NAMES, rw.FORMATS, grid.DTYPES)):
        assert {each[place] for each in wanted} == set(names)
    found = [grid.cell(kind, rw.FORMATS[format], dtype) for kind, format, dtype in wanted]
    with capsys.disabled():
        print(f"\n{grid.told(found).splitlines()[-1]}")
    assert not [each for each in found if each.faults]
    assert sum(each.refused is None for each in found) > len(found) / 2


@pytest.mark.slow
def test_the_whole_grid_has_no_faults(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    found = list(grid.cells())
    with capsys.disabled():
        print(f"\n{grid.told(found)}")
    assert len(found) == len(grid.NAMES) * len(rw.FORMATS) * len(grid.DTYPES)
    assert not [each for each in found if each.faults]
    assert all(each.refused is None or "use " in each.refused for each in found)  # a reason says what to do


def test_it_sees_what_it_is_there_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    def faults() -> str:
        return "; ".join(grid.cell("linear", rw.FORMATS["svd"], "float32").faults)

    factorise = rw.factorise
    assert not faults()

    def worse(model: nn.Module, *arguments: object) -> nn.Module:
        small = factorise(model, *arguments)  # type: ignore[arg-type]
        with torch.no_grad():
            small[0][0].weight += 1e-3  # type: ignore[index]
        return small

    monkeypatch.setattr(rw, "factorise", worse)
    assert "differs by" in faults()
    monkeypatch.setattr(rw, "factorise", lambda model, *_: copy.deepcopy(model))
    assert "are planned" in faults()
    monkeypatch.setattr(rw, "factorise", factorise)
    monkeypatch.setattr(type(rw.FORMATS["svd"]), "unfit", lambda self, site: "no reason at all")
    assert grid.cell("linear", rw.FORMATS["svd"], "float32").refused == "no reason at all"
