"""An error at any place of the library: the user's network, hooks and switches are as before, and nothing is left."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from support.counts import Tally
from torch import Tensor, nn

import rankwise as rw
from rankwise.files import digest

HOME = str(Path(rw.__file__).parent)


class InjectedError(RuntimeError):
    """What is thrown in."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.again, self.drop, self.fc = nn.Conv2d(8, 8, 3), nn.Dropout(0.5), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc(self.drop(torch.relu(self.again(x)).mean((2, 3))))


def state(model: nn.Module, batches: list[Tensor]) -> Any:
    """All that a verb has to leave as it was."""
    hooks = [
        (name, kind, len(getattr(part, kind)))
        for name, part in model.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ]
    flags = [(name, part.training, sorted(part.__dict__)) for name, part in model.named_modules()]
    needs = [(name, value.requires_grad, value.grad is None) for name, value in model.named_parameters()]
    switches = [torch.is_grad_enabled(), str(torch.get_default_dtype()), torch.get_num_threads()]
    switches += [torch.backends.mkldnn.enabled, torch.are_deterministic_algorithms_enabled()]  # type: ignore[attr-defined]
    classes = [nn.Module.__call__.__qualname__, nn.Module.__getattr__.__qualname__]
    numbers = [torch.get_rng_state(), str(random.getstate())]
    return digest([hooks, flags, needs, switches, classes, numbers, dict(model.state_dict()), batches])


def run(model: nn.Module, batches: list[Tensor], method: str) -> None:
    rw.compress(model, batches, keep={"macs": 0.6}, method=method)


def heal(model: nn.Module, batches: list[Tensor], small: nn.Module) -> None:
    rw.heal(small, model, batches, epochs=1)


def calls(work: Callable[[], Any], at: int | None = None) -> int:
    """Run work; throw at that call of a function of the library. How many there were."""
    number = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal number
        if event == "call" and frame.f_code.co_filename.startswith(HOME):
            number += 1
            if number == at:
                sys.setprofile(None)
                raise InjectedError(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return number


@pytest.mark.parametrize("points", [6, pytest.param(50, marks=pytest.mark.reliability)])
@pytest.mark.parametrize("verb", ["one-shot", "sequential", "heal"])
def test_an_error_anywhere_leaves_everything_as_it_was(
    verb: str, points: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, batches = Net().train(), [torch.randn(8, 3, 8, 8) for _ in range(3)]
    small = rw.compress(model, batches, keep={"macs": 0.6})[0]
    work = (lambda: heal(model, batches, small)) if verb == "heal" else lambda: run(model, batches, verb)
    total = calls(work)
    assert total > 1000
    before = state(model, batches)
    chance = random.Random(0)
    for point in sorted(chance.sample(range(1, total), points)):
        with suppress(Exception):  # of whatever kind it arrives
            calls(work, point)
        assert state(model, batches) == before, f"{verb}, call {point} of {total}"
        assert not list(tmp_path.iterdir()), f"{verb}, call {point} of {total}"
        tally("injected errors", "tried", 1)
        tally("injected errors", "as before", 1)
    work()  # and the next run is as any other
