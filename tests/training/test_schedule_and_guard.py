"""The small objects: schedule, guard, which parameters move."""

from __future__ import annotations

import pytest
import torch
from support.nets import unchanged
from support.training_nets import residual
from torch import nn

from rankwise.training import Cosine, Guard, LoopOptions, trainable
from rankwise.training.modes import learning

pytestmark = pytest.mark.usefixtures("one_thread")


def test_cosine_rises_and_falls() -> None:
    optimiser = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 1.0}, {"params": [torch.zeros(1)], "lr": 0.1}])
    schedule = Cosine(optimiser, warmup=0.2)
    assert [schedule(share) for share in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    schedule(0.6)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0.5, 0.05])
    assert Cosine(optimiser, warmup=0).factor(0.0) == 1
    with pytest.raises(ValueError, match="warmup is 1"):
        Cosine(optimiser, warmup=1)


def test_the_guard_keeps_the_best_and_the_start_counts() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(5)
    guard = Guard(model, 1.0)
    for weight, loss, better in ((1, 2.0, False), (2, 0.5, True), (3, float("nan"), False), (4, 0.5, False)):
        model.weight.data.fill_(weight)
        assert guard(loss) is better
    assert (guard.loss, guard.waited, guard.start) == (0.5, 2, 1.0)
    assert guard.restore().weight.item() == 2
    with pytest.raises(ValueError, match="nan before any step"):
        Guard(model, float("nan"))


def test_what_is_trainable() -> None:
    """Of the residual network: its chains and all vectors beside them, or everything."""
    _, small, _ = residual()
    chosen = {id(parameter) for parameter in trainable(small)}
    names = {name for name, parameter in small.named_parameters() if id(parameter) in chosen}
    assert {"block1.bn1.weight", "block1.bn1.bias", "head.bias"} <= names
    assert "block1.conv1.0.weight" in names
    dense_layers = [name for name, module in small.named_modules() if type(module) is nn.Conv2d and name.count(".") < 2]
    assert not names & {f"{name}.weight" for name in dense_layers}
    assert len(trainable(small, "all")) == len(list(small.parameters())) > len(chosen)
    with pytest.raises(ValueError, match="'most'"):
        trainable(small, "most")
    with pytest.raises(ValueError, match="no factorised layer"):
        trainable(nn.Linear(2, 2))


@pytest.mark.parametrize("statistics", [False, True])
def test_learning_leaves_modes_and_flags_as_they_were(statistics: bool) -> None:
    _, small, _ = residual()
    small.train()
    small.head.bias.requires_grad_(False)
    with unchanged(small), learning(small, trainable(small), statistics):
        norms = [module for module in small.modules() if isinstance(module, nn.BatchNorm2d)]
        assert {module.training for module in norms} == {statistics}
        assert not small.training
        assert small.head.bias.requires_grad


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({}, "both None"),
        ({"epochs": 1, "optimiser": "lion"}, "'lion' is not one of adamw, sgd"),
        ({"epochs": 0}, "epochs is 0"),
        ({"minutes": -1}, "minutes is -1"),
        ({"epochs": 1, "rate": float("inf")}, "rate is inf"),
    ],
)
def test_options_are_checked(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoopOptions(**wrong)  # type: ignore[arg-type]
