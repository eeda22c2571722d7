"""The benchmark of healing language models, on a small stack: the steps, and states on the way in order."""

from __future__ import annotations

import argparse
import math

import pytest
from benchmarks.heal_language import COLUMNS, LOOKS, measured
from benchmarks.language_tasks import Task
from support.stacks import Stack, stack_of, words
from torch import nn

from rankwise.evaluate import Interval, divergence

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("blocks", [0.0, 0.4])
def test_steps_and_states_on_the_way(blocks: float) -> None:
    model, held_out = stack_of(Stack), words(1, seed=7)

    def judge(network: nn.Module) -> tuple[float, float]:
        return math.exp(divergence(model, network, held_out)), math.nan

    task = Task(
        model=model,
        data=lambda seed: words(1),
        more=lambda seed, count: words(2, seed=5),
        judge=judge,
        beside=lambda own, other: Interval(value=own / other, low=own / other, high=own / other),
        value=float,
    )
    arguments = argparse.Namespace(
        seed=0, rows=32, keep=0.5, minutes=0.02, blocks=blocks, rate=1e-3, batch=8, temperature=1.0, every=2,
        artifact=None, method="sequential",
    )  # fmt: skip
    rows = measured("stack", task, arguments)
    steps = [row["step"] for row in rows]
    assert steps[:2] == ["one-shot", "sequential"]
    assert set(steps[2:]) == {"distillation"} | ({"blocks"} if blocks else set())
    assert len(steps) <= 2 + LOOKS + 1
    assert rows[2]["steps"] == 0
    assert rows[2]["value"] == pytest.approx(rows[1]["value"])  # the state that healing starts from
    for key in ("minutes", "processor"):
        on_the_way = [row[key] for row in rows[2:]]
        assert on_the_way == sorted(on_the_way)
    assert {key for row in rows for key in row} >= set(COLUMNS)
