"""Rows that name no single site are refused before anything is built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankwise import Plan, PlanRow, Sites, find
from rankwise.factorisation.apply import check_plan


@pytest.fixture
def sites() -> Sites:
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.Linear(16, 9))
    model[2].weight = model[0].weight
    return find(model, torch.zeros(1, 16))


@pytest.mark.parametrize("format, ranks", [("svd", (4,)), ("dense", ())])
@pytest.mark.parametrize(
    "name, message",
    [
        ("2", "plan row '2': this is an alias of site '0', whose row stands for both; name that one"),
        ("*", r"plan row '\*': this is a pattern, a row is for one site; name each by a row: '0', '3'"),
        ("re:[23]", r"plan row 're:\[23\]': this is a pattern"),
        ("9", "'9' matches no site; near names are"),
    ],
)
def test_rows_that_name_no_single_site(
    sites: Sites, name: str, message: str, format: str, ranks: tuple[int, ...]
) -> None:
    row = PlanRow(site=name, format=format, ranks=ranks, params=0, macs=0)
    with pytest.raises(ValueError, match=message):
        check_plan(Plan(rows=(row,)), sites)


def test_rows_that_name_a_site(sites: Sites) -> None:
    rows = (PlanRow(site="0", format="svd", ranks=(4,), params=0, macs=0), PlanRow(site="3", params=0, macs=0))
    check_plan(Plan(rows=rows), sites)
