"""Every technique by its name: trained, cut within the budget, resumed, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankwise.techniques import RECIPES, get_recipe, train_low_rank

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(120, 12, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.randn(12, 4, generator=torch.Generator().manual_seed(1))).argmax(1)
SETTINGS = {
    "maestro": "maestro:strength=0.1,every=4",
    "dynamical": "dynamical:every=4,start=0.8",
    "subspace": "subspace:dim=2,count=4",
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))


def trained(name: str, **more: Any) -> Any:
    options: dict[str, Any] = {"epochs": 4, "batch": 36, "rate": 0.01, "keep": {"params": 0.6}, "rule": "knapsack"}
    options |= {"only": ["0", "2"], "calibration": 64, **more}
    return train_low_rank(network(), X, Y, technique=SETTINGS.get(name, name), **options)


@pytest.mark.parametrize("name", RECIPES)
def test_every_technique_ends_with_a_network_within_the_budget(name: str) -> None:
    small, report = trained(name)
    assert report.plan.planned["params"] == sum(p.numel() for p in small.parameters())
    assert report.plan.planned["params"] <= 0.6 * report.plan.dense["params"]
    assert report.losses["end"] <= report.losses["cut"]
    assert type(small[4]) is nn.Linear  # it was not named
    assert report.plan["4"].format == "dense"
    assert [type(part) for part in report.dense] == [type(part) for part in network()]


def test_without_a_budget_the_technique_says_the_ranks() -> None:
    _, report = trained("rank_pruning:lost=0.3,every=3", keep=None)
    assert "a cut that loses 0.3" in report.plan.factorised[0].why
    with pytest.raises(ValueError, match="technique 'admm' needs a budget"):
        trained("admm", keep=None)


def test_the_second_training_has_what_a_warm_up_left() -> None:
    _, report = trained("warm_up:settled=0.9", tune=0.25, epochs=8)
    wide, small = report.stages["expanded"], report.stages["small"]
    assert wide.steps == 3  # one look
    assert wide.steps + small.steps == 8 * 3


def test_another_technique_is_refused_on_resuming(tmp_path: Path) -> None:
    trained("rank_pruning", epochs=1, checkpoint=tmp_path / "run.pt")
    _, again = trained("rank_pruning", epochs=1, checkpoint=tmp_path / "run.pt", resume=True)
    assert again.stages["small"].steps > 0
    with pytest.raises(ValueError, match="is of another training: technique"):
        trained("rank_pruning:lost=0.5", epochs=1, checkpoint=tmp_path / "run.pt", resume=True)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="unknown technique 'maestr'; did you mean maestro"):
        get_recipe("maestr")
    with pytest.raises(ValueError, match="training needs labels"):
        train_low_rank(network(), X)
    with pytest.raises(ValueError, match="needs one budget, a share of params or macs"):
        trained("flexrank", keep={"params": 0.6, "macs": 0.6})
    with pytest.raises(ValueError, match="tune is 1; it is a share"):
        trained("maestro", tune=1)
