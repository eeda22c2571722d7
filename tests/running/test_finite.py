"""NaN, infinity and no tensors at all among what networks return."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from support.nets import batches_of, plan_of
from torch import Tensor, nn

import rankwise as rw
from rankwise.running.finite import culprit, is_finite


class LogOf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


class Returns(nn.Module):
    """A network that returns something else than its scores."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.first, self.second, self.what = nn.Linear(16, 24), nn.Linear(24, 6), what

    def forward(self, x: Tensor) -> Any:
        return self.what(self.second(torch.relu(self.first(x))))


def through_a_logarithm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), LogOf(), nn.Linear(24, 24), nn.Linear(24, 6)).eval()


@pytest.mark.parametrize("engine", ["graph", "hooks"])
def test_the_first_module_that_gives_none_is_named(engine: str) -> None:
    net, data = through_a_logarithm(), batches_of(8, 16, count=2)
    message = r"site '2', batch 0: the input holds NaN or infinity.* The first to give them is '1' \(LogOf\)"
    with pytest.raises(ValueError, match=message):
        rw.collect(net, data)
    plan = plan_of(rw.find(net, data[0]), {"2": ("svd", (4,))})
    with pytest.raises(ValueError, match=message):
        rw.factorise(net, plan, data=data, engine=engine)


def test_a_later_batch_and_a_site() -> None:
    net, data = through_a_logarithm(), batches_of(8, 16, count=3)
    net[1] = nn.ReLU()
    data[2][0] = 3e38
    with pytest.raises(ValueError, match=r"site '2', batch 2: .*first to give them is '0' \(Linear\)"):
        rw.collect(net, data)
    assert culprit(net, data[0]) == ""


def test_outputs_that_are_not_finite_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    net, data = Returns(torch.log).eval(), batches_of(8, 16, count=2)
    with caplog.at_level(logging.WARNING, "rankwise"):
        stats = rw.collect(net, data)
    assert stats["second"].count == 16
    assert caplog.messages == [
        "batch 0: the network's outputs hold NaN or infinity. The first to give them is the model itself"
    ]


def test_minus_infinity_is_a_score(caplog: pytest.LogCaptureFixture) -> None:
    def masked(scores: Tensor) -> Tensor:
        return torch.cat((scores[:, :-1], torch.full_like(scores[:, -1:], -torch.inf)), 1)

    net, data = Returns(masked).eval(), batches_of(8, 16, count=2)
    assert is_finite(net(data[0]))
    with caplog.at_level(logging.WARNING, "rankwise"):
        rw.collect(net, data)
    assert not caplog.messages


@pytest.mark.parametrize("what", [lambda scores: None, lambda scores: "text", lambda scores: float(scores.sum())])
def test_networks_that_return_no_tensor(what: Any) -> None:
    net, data = Returns(what).eval(), batches_of(32, 16, count=2)
    small, report = rw.compress(net, data, keep={"params": 0.6})
    assert report.compressed.params <= 0.6 * report.dense.params
    labels = torch.zeros(64, dtype=torch.long)
    for run in (
        lambda: rw.collect(net, data, gradients=True),
        lambda: rw.evaluate.agreement(net, small, data),
        lambda: rw.evaluate.relative_error(net, small, data),
        lambda: rw.evaluate.accuracy(net, [(data[0], labels[:32])]),
        lambda: rw.heal(small, net, data, epochs=1),
        lambda: rw.training.train(net, data, labels, epochs=1, keep={"params": 0.9}),
    ):
        with pytest.raises(ValueError, match="which holds no tensor to compare"):
            run()


def test_text_beside_scores() -> None:
    net, data = Returns(lambda scores: (scores, None, "text")).eval(), batches_of(32, 16, count=2)
    small, _ = rw.compress(net, data, keep={"params": 0.6})
    assert 0 <= rw.evaluate.agreement(net, small, data) <= 100


def test_a_loss_that_cannot_be_computed() -> None:
    net, data = Returns(lambda scores: (scores, scores)).eval(), batches_of(32, 16, count=2)
    with pytest.raises(ValueError, match=r"the loss cannot be computed from outputs \(a tuple.*give a loss= of your"):
        rw.training.train(net, data, torch.zeros(64), loss=lambda outputs, labels: outputs + labels, epochs=1)


@pytest.mark.parametrize("label, message", [(6, "number 5 of 64 is 6, .*classes 0 to 5"), (-1, "number 5 of 64 is -1")])
def test_labels_of_classes_that_there_are_not(label: int, message: str) -> None:
    net, data = Returns(lambda scores: scores).eval(), batches_of(32, 16, count=2)
    labels = torch.arange(64) % 6
    labels[5] = label
    small, _ = rw.compress(net, data, keep={"params": 0.6})
    with pytest.raises(ValueError, match=message):
        rw.training.train(net, data, labels, epochs=1, keep={"params": 0.9})
    with pytest.raises(ValueError, match=message):
        rw.heal(small, net, data, labels=labels, epochs=1)
