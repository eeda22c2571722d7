"""Rows that are regressed on one another belong to the same sample, position, token and draw."""

from __future__ import annotations

import logging
import random

import pytest
import torch
from support.factorisation_nets import NOISES, Draws
from support.nets import batches_of, make, plan_of, unchanged
from torch import Tensor, nn

import rankwise as rw
from rankwise.running.randomness import Randomness


def error(dense: nn.Module, small: nn.Module, x: Tensor) -> float:
    """Relative error where both networks draw the same numbers."""
    randomness = Randomness(dense, small)
    outputs = []
    with torch.no_grad(), randomness.kept():
        for model in (dense, small):
            randomness.seed(0)
            outputs.append(model(x))
    return float((outputs[0] - outputs[1]).norm() / outputs[0].norm())


@pytest.mark.parametrize("engine", ["graph", "hooks"])
@pytest.mark.parametrize("kind", NOISES)
def test_both_networks_draw_the_same(kind: str, engine: str) -> None:
    model = make(lambda: Draws(NOISES[kind]()))
    batches = batches_of(256, 24, count=8)
    stats = rw.collect(model, batches)
    plan = plan_of(stats.sites, {"first": ("svd", (14,)), "last": ("svd", (14,))})
    one_shot = rw.factorise(model, plan, stats)
    with unchanged(model):
        small = rw.factorise(model, plan, stats, data=batches, engine=engine)
    x = torch.randn(256, 24)
    assert error(model, small, x) <= 1.05 * error(model, one_shot, x)


@pytest.mark.parametrize("steered", [False, True])
def test_numbers_that_a_graph_would_hold_as_constants(steered: bool) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(24, 24), nn.Linear(24, 24)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            if steered:  # one side of the branch is as likely to be traced as it is to be right
                return self.last(h if random.random() < 0.95 else -h)
            return self.last(h + torch.randn(24))

    model, batches = make(Fixed), batches_of(64, 24)
    plan = plan_of(rw.find(model, batches[0]), {"first": ("svd", (8,)), "last": ("svd", (8,))})
    with pytest.raises(ValueError, match=r"random numbers .* would be constants of the graph"):
        rw.factorise(model, plan, data=batches, engine="graph")
    assert rw.factorise(model, plan, data=batches)


class Experts(nn.Module):
    """Each token goes to the expert of its largest score; the last one gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(24, 24), nn.Linear(24, 3)
        self.experts = nn.ModuleList([nn.Linear(24, 24) for _ in range(3)])
        self.last = nn.Linear(24, 24)
        with torch.no_grad():
            self.gate.bias[2] = -1e4

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        chosen = self.gate(x).argmax(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            out = out.index_add(0, rows, expert(x[rows]))
        return self.last(out + x)


@pytest.mark.parametrize("engine", ["graph", "hooks"])
def test_experts(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    model, batches = make(Experts), batches_of(64, 24, count=8)
    stats = rw.collect(model, batches)
    assert "never reach 'experts.2': left dense" in caplog.text
    plan = rw.choose(model, stats, keep={"params": 0.7})
    assert plan["experts.2"].format == "dense"
    assert "never reach" in plan["experts.2"].why
    assert "index in Experts" in plan["experts.0"].why
    assert plan["experts.0"].format == plan["last"].format == "svd"
    one_shot = rw.factorise(model, plan, stats)
    small = rw.factorise(model, plan, stats, data=batches, engine=engine)
    x = torch.randn(256, 24)
    assert error(model, small, x) <= 1.1 * error(model, one_shot, x)


def test_nothing_reaches_what_a_plan_names() -> None:
    model, batches = make(Experts), batches_of(64, 24)
    plan = plan_of(rw.find(model, batches[0]), {"experts.2": ("svd", (4,))})
    with unchanged(model), pytest.raises(ValueError, match=r"never reached site 'experts\.2'"):
        rw.factorise(model, plan, data=batches)


@pytest.mark.parametrize("limit", [0.0, 0.35])
def test_rows_that_cannot_be_paired_are_found_at_run_time(limit: float, caplog: pytest.LogCaptureFixture) -> None:
    class Exit(nn.Module):
        """Goes on with the samples that are not sure yet, counted one by one."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.head, self.last = nn.Linear(24, 24), nn.Linear(24, 4), nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            sure = self.head(h).softmax(-1).amax(-1)
            unsure = int((sure < 0.35).sum()) if limit else 1 + int(sure.mean() * 1e6) % 7
            return self.last(h[:unsure])

    model, batches = make(Exit), batches_of(64, 24)
    stats = rw.collect(model, batches)
    plan = plan_of(stats.sites, {"first": ("svd", (6,)), "last": ("svd", (2,))})
    with caplog.at_level(logging.WARNING):
        small = rw.factorise(model, plan, stats, data=batches)
    assert "site 'last', batch" in caplog.text
    assert "fitted to its dense inputs" in caplog.text
    alone = rw.factorise(model, plan, stats)  # one-shot, on the moments of the dense inputs
    torch.testing.assert_close(small.last[0].weight, alone.last[0].weight)
