"""Latency: the order of the runs and what is left behind; never the seconds themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise.evaluate import latency


class Recording(nn.Module):
    """Writes its name into a list whenever it runs."""

    def __init__(self, name: str, log: list[Any]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.log.append((self.name, self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        return x


def test_models_run_in_turns() -> None:
    log: list[Any] = []
    before = torch.get_num_threads()
    models = {name: Recording(name, log).train() for name in "abc"}
    timed = latency(models, torch.zeros(1), threads=1, rounds=4, warmup=1)
    # one run of each to learn its arguments, then the rounds, the first of them unmeasured
    assert "".join(name for name, *_ in log) == "abc" + "abcbcacababcbca"
    assert {entry[1:] for entry in log} == {(False, False, 1)}
    assert torch.get_num_threads() == before
    assert all(model.training for model in models.values())
    assert list(timed) == ["a", "b", "c"]


@pytest.mark.parametrize("example", [torch.zeros(1), (torch.zeros(1), torch.ones(1)), {"x": torch.zeros(1)}])
def test_kinds_of_examples(example: Any) -> None:
    assert latency({"a": Recording("a", [])}, example, rounds=1)["a"].median > 0


def test_flags_come_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).train()
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="rejects the example batch"):
        latency({"a": model}, torch.zeros(1, 3), threads=1)
    assert model.training
    assert torch.get_num_threads() == before


def test_onnxruntime_times_the_same_models() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    timed = latency({"a": model, "b": model}, torch.randn(2, 3, 8, 8), engine="onnxruntime", rounds=3)
    assert all(0 < each.low <= each.median <= each.high for each in timed.values())
    assert model.training


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"engine": "tensorrt"},
            "unknown engine 'tensorrt'; the engines are torch, compile, onnxruntime, ",
        ),
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"rounds": 0}, "rounds is 0; it must be at least 1"),
        ({"warmup": -1}, "warmup is -1; it must be at least 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latency({"a": nn.Identity()}, torch.zeros(1), **options)


def test_no_models() -> None:
    with pytest.raises(ValueError, match="models is empty"):
        latency({}, torch.zeros(1))
