"""The loop: it learns, never ends below its start, goes on where it was killed, and says what is wrong."""

from __future__ import annotations

import copy
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.nets import batches_of
from support.training_nets import same, state
from torch import Tensor, nn

from rankwise.training import Look, Loop, LoopOptions, Samples
from rankwise.training.checkpoint import read_checkpoint, write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

X = batches_of(200, 4, count=1)[0]
TARGET = torch.tensor([[1.0, -2.0, 3.0, 0.5]])


class KilledError(RuntimeError):
    pass


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.0))


def loop(model: nn.Module, rate: float = 0.05, optimiser: str = "adamw", epochs: float | None = 4, **more: Any) -> Loop:
    """Least squares with a target that is linear, 180 samples to train on, 7 steps in an epoch."""
    named = ("minutes", "every", "patience", "batch", "clip", "amp")
    chosen = {name: more.pop(name) for name in named if name in more}
    options = LoopOptions(**{"rate": rate, "optimiser": optimiser, "epochs": epochs, "batch": 25, **chosen})

    def loss(inputs: Any, labels: Tensor | None) -> Tensor:
        return (model(inputs) - inputs @ TARGET.T).square().mean()

    return Loop(model, loss, Samples.of(X), options, **more)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_it_finds_the_least_squares_solution(optimiser: str) -> None:
    model = linear()
    report = loop(model, optimiser=optimiser, rate=0.2, epochs=40, clip=100.0, augment=torch.neg).run()
    assert report.after < 1e-4 * report.before
    torch.testing.assert_close(model[0].weight, TARGET, atol=0.02, rtol=0)
    assert report.steps == 280
    assert [look.step for look in report.looks] == list(range(0, 281, 7))
    assert report.looks[-1].share == 1
    assert not model[0].weight.grad
    assert model.training


def test_the_start_is_given_back_where_nothing_is_better() -> None:
    """At the solution every step leads away."""
    model = linear()
    with torch.no_grad():
        model[0].weight.copy_(TARGET)
        model[0].bias.zero_()
    before = state(model)
    report = loop(model, penalties=[lambda: model[0].weight.square().sum()], rate=0.1).run()
    assert report.after == report.before == 0
    assert report.looks[-1].held_out > 0
    assert same(state(model), before)


def test_patience_ends_it() -> None:
    model = linear()
    with torch.no_grad():
        model[0].weight.copy_(TARGET)
        model[0].bias.zero_()
    assert loop(model, patience=2, every=3, penalties=[lambda: model[0].weight.sum()]).run().steps == 6


def test_a_time_limit_ends_it_and_the_rate_falls_with_time() -> None:
    model = linear()
    training = loop(model, epochs=None, minutes=0.3 / 60)
    report = training.run()
    assert report.steps > 0
    assert report.looks[-1].share == 1
    assert report.looks[-1].step == report.steps
    assert training.optimiser.param_groups[0]["lr"] < 0.05


def test_only_the_given_parameters_move() -> None:
    model = linear()
    weight, bias = model[0].weight.clone(), model[0].bias.clone()
    loop(model, parameters=[model[0].bias]).run()
    assert torch.equal(model[0].weight, weight)
    assert not torch.equal(model[0].bias, bias)


def test_the_random_state_is_left_alone_and_the_seed_decides() -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 1))
        with torch.no_grad():
            model[0].weight.zero_(), model[0].bias.zero_()
        before = torch.get_rng_state()
        loop(model, augment=lambda x: x + 0.1 * torch.randn_like(x)).run()
        assert torch.equal(torch.get_rng_state(), before)
        results.append(state(model))
    assert same(*results)


@pytest.mark.parametrize("at", [0, 2, 3])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_killed_and_resumed_ends_bit_equal(tmp_path: Path, at: int, optimiser: str) -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)

    def kill(look: Look) -> None:
        if look.step >= 5 * at:
            raise KilledError

    whole, killed = linear(), linear()
    settings: dict[str, Any] = {"optimiser": optimiser, "every": 5, "augment": noisy}
    expected = loop(whole, **settings).run()
    file = tmp_path / "run.pt"
    with pytest.raises(KilledError):
        loop(killed, checkpoint=file, progress=kill, **settings).run()
    fresh = linear()
    report = loop(fresh, checkpoint=file, resume=True, **settings).run()
    assert same(state(fresh), state(whole))
    assert (report.before, report.after, report.steps) == (expected.before, expected.after, expected.steps)
    assert [look.held_out for look in report.looks] == [look.held_out for look in expected.looks]
    done = linear()  # what is finished and resumed is finished
    loop(done, checkpoint=file, resume=True, **settings).run()
    assert same(state(done), state(whole))


SCRIPT = """
import os, sys, torch
from torch import nn
from rankwise.training import Loop, LoopOptions, Samples
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
def die(look):
    if look.step >= int(sys.argv[2]):
        os.kill(os.getpid(), 9)
def loss(x, _):
    return (model(x) - x.sum(1, True)).square().mean()
loop = Loop(model, loss, Samples.of(torch.randn(100, 4)), LoopOptions(epochs=6, batch=10, every=4, rate=0.01),
            checkpoint=sys.argv[1], resume=os.path.exists(sys.argv[1]), progress=die)
loop.run()
torch.save(model.state_dict(), sys.argv[3])
"""


@pytest.mark.slow
def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    """SIGKILL, not an exception that Python could clean up after."""

    def run(checkpoint: str, die: int, out: str) -> int:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / checkpoint), str(die), str(tmp_path / out)]
        return subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode

    assert run("a.pt", 12, "a") == -9
    assert run("a.pt", 1000, "a") == 0
    assert run("b.pt", 1000, "b") == 0
    assert same(torch.load(tmp_path / "a"), torch.load(tmp_path / "b"))


def test_divergence_stops_with_the_best_state_in_place_and_on_disk(tmp_path: Path) -> None:
    model, bad = linear(), [False]

    def penalty() -> Tensor:
        return model[0].weight.sum() * (float("nan") if bad[0] else 0.0)

    def progress(look: Look) -> None:
        bad[0] = look.step >= 10

    file = tmp_path / "run.pt"
    training = loop(model, penalties=[penalty], progress=progress, every=5, checkpoint=file)
    with pytest.raises(ValueError, match=r"step 10 has a loss of nan.*rate of 0\.05; choose a smaller one"):
        training.run()
    saved = read_checkpoint(file)["guard"]
    assert saved["loss"] < saved["start"]
    assert same(state(model), saved["best"])
    assert bool(torch.isfinite(model[0].weight).all())


def test_checkpoints_that_are_missing_damaged_or_of_another_run(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    with pytest.raises(ValueError, match=r"no checkpoint .*start without resuming"):
        loop(linear(), checkpoint=file, resume=True).run()
    with pytest.raises(ValueError, match="resume needs a checkpoint"):
        loop(linear(), resume=True)
    loop(linear(), checkpoint=file).run()
    with pytest.raises(ValueError, match=r"run\.pt exists; resume from it, or delete it"):
        loop(linear(), checkpoint=file).run()
    with pytest.raises(ValueError, match=r"of another training: rate 0\.05 there, 0.1 here"):
        loop(linear(), rate=0.1, checkpoint=file, resume=True).run()
    with pytest.raises(ValueError, match=r"layers .* there"):
        loop(nn.Sequential(nn.Linear(4, 1, bias=False)), checkpoint=file, resume=True).run()
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not a checkpoint"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            loop(linear(), checkpoint=file, resume=True).run()
    torch.save({"model": 1}, file)
    with pytest.raises(ValueError, match="it is cut off, or not a checkpoint of this version"):
        loop(linear(), checkpoint=file, resume=True).run()


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "attacked"),)

    torch.save({"rankwise": 1, "run": {}, "state": Attack()}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="is damaged"):
        read_checkpoint(tmp_path / "run.pt")
    assert not (tmp_path / "attacked").exists()


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.pt"
    write_checkpoint(file, {"seed": 0}, {"step": 1})

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write: No space left on device"):
        write_checkpoint(file, {"seed": 0}, {"step": 2})
    assert read_checkpoint(file) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_device_that_is_full_is_an_os_error() -> None:
    with pytest.raises(OSError, match="/dev/full"):
        write_checkpoint(Path("/dev/full"), {}, {"x": torch.zeros(100_000)})


def test_bfloat16_where_it_is_asked_for() -> None:
    model = linear()
    seen: list[torch.dtype] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    loop(model, epochs=1, amp=True).run()
    assert torch.bfloat16 in seen
    assert model[0].weight.dtype == torch.float32
    assert copy.deepcopy(model)[0].weight.isfinite().all()
