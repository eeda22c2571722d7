"""Healing: closer to the dense network, never further, both networks left alone, resumable."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.nets import batches_of, make, outputs, unchanged
from support.training_nets import pair, residual, same, state
from torch import nn

import rankwise as rw
from rankwise.evaluate import divergence
from rankwise.training import Look

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_brings_a_network_closer_and_leaves_both_alone() -> None:
    dense, small, x = residual()
    fresh = batches_of(64, 3, 8, 8, seed=1)
    looks: list[tuple[str, Look]] = []
    dense.train()
    with unchanged(dense), unchanged(small):
        healed, report = rw.heal(
            small,
            dense,
            fresh,
            epochs=10,
            batch=32,
            blocks=True,
            augment="flip,crop",
            progress=lambda *look: looks.append(look),
        )
    assert type(healed) is type(small)
    assert healed.training is small.training
    assert report.after < 0.8 * report.before
    assert divergence(dense, healed, [x]) < divergence(dense, small, [x])
    assert list(report.stages) == ["blocks", "distillation"]
    assert report.stages["blocks"].after == report.stages["distillation"].before
    assert [stage for stage, _ in looks[:1] + looks[-1:]] == ["blocks", "distillation"]
    assert (report.samples, report.held_out) == (230, 26)
    assert "230 samples" in str(report)


def test_parameters_that_are_not_trained_stay() -> None:
    dense, small, _ = residual()
    healed, _ = rw.heal(small, dense, batches_of(64, 3, 8, 8, seed=1), epochs=3, batch=32)
    before, after = state(small), state(healed)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    inside = {name for name in before if any(name.startswith(f"{chain}.") for chain in chains_of(small))}
    vectors = {name for name, parameter in small.named_parameters() if parameter.dim() == 1}
    assert moved <= inside | vectors
    assert moved & inside


def chains_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, rw.LowRank)]


def test_a_diverging_guard_gives_the_start_back() -> None:
    """A rate so large that every state is further away; balancing alone changes no answer."""
    dense, small, x = pair()
    healed, report = rw.heal(small, dense, x, epochs=2, batch=16, rate=30.0, clip=1e9)
    assert report.after <= report.before
    assert report.stages["distillation"].looks[-1].held_out > report.before
    torch.testing.assert_close(outputs(healed, [x]), outputs(small, [x]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", ["blocks", "distillation"])
@pytest.mark.parametrize("step", [0, 4])
def test_stopped_in_any_stage_it_ends_bit_equal(tmp_path: Path, stage: str, step: int) -> None:
    dense, small, x = pair()
    settings: dict[str, Any] = {"epochs": 4, "batch": 10, "every": 2, "blocks": 0.3}
    expected, told = rw.heal(small, dense, x, **settings)

    def kill(at: str, look: Look) -> None:
        if (at, look.step) == (stage, step):
            raise KeyboardInterrupt

    file = tmp_path / "heal.pt"
    with pytest.raises(KeyboardInterrupt):
        rw.heal(small, dense, x, checkpoint=file, progress=kill, **settings)
    healed, report = rw.heal(small, dense, x, checkpoint=file, resume=True, **settings)
    assert same(state(healed), state(expected))
    assert (report.before, report.after) == (told.before, told.after)
    assert {name: stage.steps for name, stage in report.stages.items()} == {
        name: stage.steps for name, stage in told.stages.items()
    }
    other = copy.deepcopy(small)
    next(other.parameters()).data.add_(1)
    with pytest.raises(ValueError, match=r"networks '\w+' there"):
        rw.heal(other, dense, x, checkpoint=file, resume=True, **settings)


def test_regression_labels_and_features() -> None:
    dense, small, x = pair()
    _, report = rw.heal(small, dense, x, epochs=8, batch=16, logits=False)
    assert report.after < report.before
    labels = dense(x).argmax(1)
    healed, _ = rw.heal(small, dense, x, epochs=8, batch=16, labels=labels, features=["1"])
    right = (outputs(healed, [x]).argmax(1) == labels).double().mean()
    assert right >= (outputs(small, [x]).argmax(1) == labels).double().mean()


def test_every_part_can_be_chosen() -> None:
    dense, small, x = residual()
    for choice in ({"train": "all"}, {"statistics": True}, {"blocks": True}, {"blocks": ["block1", "block2"]}):
        _, report = rw.heal(small, dense, x, epochs=3, batch=8, **choice)
        assert report.after <= report.before


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"blocks": 1.5}, r"blocks is 1\.5"),
        ({"train": "nothing"}, "train is 'nothing'"),
        ({"augment": "spin"}, "'spin' is not one of"),
        ({"augment": "flip,mixup", "labels": [0] * 96}, "labels cannot be mixed"),
        ({"resume": True}, "resume needs a checkpoint"),
    ],
)
def test_errors(wrong: dict[str, Any], message: str) -> None:
    dense, small, x = pair()
    with pytest.raises(ValueError, match=message):
        rw.heal(small, dense, x, epochs=1, **wrong)


def test_a_teacher_of_other_outputs_is_refused() -> None:
    _, small, x = pair()
    with pytest.raises(ValueError, match=r"\[\d+, 7\], the small one \[\d+, 5\]"):
        rw.heal(small, make(lambda: nn.Linear(12, 7)), x, epochs=1)


SCRIPT = """
import sys, torch
import rankwise as rw
from support.training_nets import pair
torch.set_num_threads(1)
dense, small, x = pair()
healed, report = rw.heal(small, dense, x, epochs=4, batch=8, checkpoint=sys.argv[1])
assert report.after < report.before
import os
torch.save(healed.state_dict(), sys.argv[1] + "." + os.environ["RANK"])
"""


@pytest.mark.slow
def test_two_processes_agree_and_one_writes(tmp_path: Path) -> None:
    """Both end with the same network; steps are as many as those of one process with twice the batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = Path(__file__).parents[1]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run.pt")]
    processes = [subprocess.Popen(command, env={**shared, "RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"run.pt.{rank}") for rank in range(2))
    assert same(first, second)
    dense, small, x = pair()
    _, report = rw.heal(small, dense, x, epochs=4, batch=16)
    content = torch.load(tmp_path / "run.pt", weights_only=True)
    assert content["run"]["processes"] == 2
    assert content["state"]["step"] == report.stages["distillation"].steps


@pytest.mark.slow
def test_resnet20(networks: ModuleType) -> None:
    """84 steps on 1,000 pictures bring the network at 0.3 of the MACs closer."""
    dense = networks.resnet20()
    pictures = networks.cifar10_lossless("train")[0][:1000]
    batches = [networks.normalise_imagenet(part) for part in pictures[:256].split(64)]
    small, _ = rw.compress(dense, batches, keep={"macs": 0.3}, formats=["svd"])
    healed, report = rw.heal(
        small, dense, pictures, prepare=networks.normalise_imagenet, epochs=12, augment="flip,crop,mixup"
    )
    test = [networks.normalise_imagenet(part) for part in networks.cifar10_lossless("test")[0].split(250)]
    assert report.after < 0.7 * report.before
    assert divergence(dense, healed, test) < divergence(dense, small, test)  # on pictures the dense one never saw
