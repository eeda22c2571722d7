"""The whole training: budgets, kinds of orthogonality, and a run that is killed and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.nets import chains, unchanged
from support.training_nets import network, same, samples, state, trained
from torch import nn

import rankwise as rw
from rankwise.network.sites import fingerprint
from rankwise.training import Look, train
from rankwise.training.factor_training import parse_orthogonal

pytestmark = pytest.mark.usefixtures("one_thread")


class KilledError(RuntimeError):
    pass


@pytest.mark.parametrize(
    "orthogonal, expand",
    [("none", "svd"), ("soft:1", "tucker2"), ("double:1", "tucker2"), ("srip:0.1", "tucker2"), ("hard", "svd")],
)
def test_it_learns_within_the_budget(orthogonal: str, expand: str) -> None:
    model = network()
    with unchanged(model):
        small, report = trained(model, orthogonal=orthogonal, expand=expand)
    assert report.losses["trained"] < 0.6 * report.losses["start"]
    assert report.losses["end"] <= report.losses["cut"]
    assert rw.evaluate.size(small).params == report.plan.planned["params"] <= 0.5 * rw.evaluate.size(model).params
    assert chains(small)
    assert not chains(report.dense)
    assert fingerprint(report.dense) == fingerprint(model)
    assert (report.deviation < 1e-5) == (orthogonal == "hard")
    assert [name for name in small.state_dict() if "parametrizations" in name] == []


def test_penalties_hold_factors_together() -> None:
    free, held = (trained(orthogonal=kind)[1].deviation for kind in ("none", "soft:10"))
    assert held < 0.3 * free


def test_it_is_reproducible_and_says_what_it_does() -> None:
    looks: list[tuple[str, Look]] = []
    a, report = trained(progress=lambda stage, look: looks.append((stage, look)), augment="flip")
    b, _ = trained(augment="flip")
    assert same(state(a), state(b))
    assert {stage for stage, _ in looks} == {"expanded", "small"}
    assert report.stages["expanded"].steps == 3 * 9
    assert report.stages["small"].steps == 9
    assert "of 2,811 parameters" in str(report)


def test_the_artifact_loads_onto_the_dense_network(tmp_path: Path) -> None:
    small, report = trained()
    rw.save(small, tmp_path / "out", plan=report.plan)
    again = rw.load(network(), tmp_path / "out")
    x, _ = samples()
    torch.testing.assert_close(again(x), small.eval()(x))


@pytest.mark.parametrize(
    "at, orthogonal",
    [
        (2, "srip:0.1"),
        (4, "hard"),
        *(pytest.param(at, "srip:0.1", marks=pytest.mark.slow) for at in (0, 3, 5, 6)),
        *(pytest.param(at, "hard", marks=pytest.mark.slow) for at in (1, 6)),
    ],
)
def test_killed_at_any_look_it_ends_with_the_same_network(tmp_path: Path, at: int, orthogonal: str) -> None:
    """The looks: 0 to 3 of the expanded network, 4 to 5 of the small one; 6 is after the end."""
    left = at

    def kill(stage: str, look: Look) -> None:
        nonlocal left
        if left == 0:
            raise KilledError
        left -= 1

    how: dict[str, Any] = {"orthogonal": orthogonal, "schedule": "cosine", "every": 9}
    whole, report = trained(**how)
    file = tmp_path / "run.pt"
    if at < 6:
        with pytest.raises(KilledError):
            trained(**how, checkpoint=file, progress=kill)
        assert file.exists() == (at >= 4)
    else:
        trained(**how, checkpoint=file)
    small, again = trained(**how, checkpoint=file, resume=True)
    assert same(state(small), state(whole))
    assert again.losses == report.losses
    assert again.plan == report.plan


def test_another_budget_after_the_first_training(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    with pytest.raises(ValueError, match="cannot be met"):
        trained(checkpoint=file, keep={"params": 0.01}, rule="knapsack")
    _, report = trained(checkpoint=file, resume=True, keep={"params": 0.4})
    assert report.plan.planned["params"] <= 0.4 * report.plan.dense["params"]
    with pytest.raises(ValueError, match="another training"):
        trained(checkpoint=file, resume=True, keep={"params": 0.3})
    with pytest.raises(ValueError, match=r"orthogonal 'soft:0\.01' there"):
        trained(checkpoint=file, resume=True, orthogonal="soft:0.1")


def test_only_named_layers_and_weights_alone() -> None:
    small, report = trained(only=["0", "3"], calibration=0, keep=None, rule="evbmf:weakening=0.5,empty=one")
    assert {row.site for row in report.plan.factorised} <= {"0", "3"}
    assert isinstance(small[7], nn.Linear)  # type: ignore[index]


@pytest.mark.parametrize(
    "more, message",
    [
        ({"orthogonal": "soft:x"}, "orthogonal 'soft:x'"),
        ({"orthogonal": "hard:1"}, "orthogonal 'hard:1'"),
        ({"expand": "cp"}, "'cp' is not one of"),
        ({"schedule": "linear"}, "schedule 'linear'"),
        ({"tune": 1.0}, "tune is 1.0"),
        ({"tune_rate": -1.0}, "rate is -1.0"),
        ({"augment": "mixup"}, "leave out mixup"),
        ({"rule": "knapsack", "keep": None}, "needs a budget"),
        ({"rule": "sensitivity"}, "has to try plans"),
        ({"keep": {"latency": 0.5}}, "cut by counts: keep params, macs or bytes"),
    ],
)
def test_what_it_refuses(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(**more)
    with pytest.raises(ValueError, match="needs labels"):
        train(network(), samples()[0])


def test_kinds_are_read() -> None:
    assert parse_orthogonal("soft") == ("soft", 0.01)
    assert parse_orthogonal("double:2e-3") == ("double", 0.002)
    assert parse_orthogonal("none") == ("none", 0.0)


SCRIPT = """
import sys, torch
sys.path[:0] = {paths!r}
from support.training_nets import trained
from rankwise.training.together import rank, together
torch.set_num_threads(1)
with together(torch.device("cpu")):
    small, report = trained(batch=10)
    torch.save((small.state_dict(), report.losses), f"{folder}/{{rank()}}.pt")
"""


@pytest.mark.slow
def test_two_processes_end_with_one_network(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parents[1])]
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(paths=paths, folder=tmp_path))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    (first, losses), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    learnt = {name for name in first if "running" not in name and "tracked" not in name}
    assert same({name: first[name] for name in learnt}, {name: second[name] for name in learnt})
    assert losses["end"] < 0.6 * losses["start"]
