"""What `Loop` asks of techniques, and the ones that there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.plan import Plan
from rankwise.training import (
    Constrained,
    KeptOrthogonal,
    Loop,
    LoopOptions,
    RankSearch,
    RanksInTurn,
    Samples,
    Step,
    Technique,
    deviation,
    expand_,
)

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8))


def loop(model: nn.Module, *techniques: Technique, epochs: float = 2, **more: Any) -> Loop:
    """54 samples to train on, 3 steps in an epoch."""
    options = LoopOptions(epochs=epochs, batch=18, rate=0.01)
    return Loop(
        model, lambda x, _: (model(x) - x).square().mean(), Samples.of(X), options, techniques=techniques, **more
    )


class Told(Technique):
    """Writes down what it is asked."""

    def __init__(self, plan: Plan | None = None) -> None:
        self.asked: list[Any] = []
        self.plan = plan

    def begin(self, model: nn.Module) -> None:
        self.asked.append("begin")

    def before_step(self, step: Step) -> None:
        self.asked.append((step.number, round(step.share, 3), tuple(step.inputs.shape), step.labels))

    def penalty(self) -> Tensor:
        self.asked.append("penalty")
        return torch.tensor(0.5)

    def finish(self, model: nn.Module) -> Plan | None:
        self.asked.append("finish")
        return self.plan


def test_what_is_asked_and_when() -> None:
    told, plan = Told(), Plan(rows=())
    training = loop(network(), told, Told(plan), epochs=1)
    assert told.asked == ["begin"]
    report = training.run()
    steps = [each for number in range(3) for each in ((number, round(number / 3, 3), (18, 8), None), "penalty")]
    assert told.asked == ["begin", *steps, "finish"]
    assert training.plan is plan
    own = report.looks[-1].loss
    assert own is not None
    assert own > 1.0  # two penalties of one half beside the loss


def test_a_technique_that_does_nothing_changes_nothing() -> None:
    plain, with_one = network(), network()
    loop(plain).run()
    loop(with_one, Technique()).run()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), with_one.parameters(), strict=True))


def test_the_constraint_holds_during_the_training_and_ends_with_it() -> None:
    model = network()
    wide = expand_(model, rw.find(model, X[:1]), "svd")
    seen: list[float] = []

    class Watch(Technique):
        def before_step(self, step: Step) -> None:
            seen.append(deviation(wide))

    loop(wide, Constrained(), Watch()).run()
    assert max(seen) < 1e-5
    assert not any(hasattr(part, "parametrizations") for part in wide.modules())
    assert deviation(wide) < 1e-5


def test_the_penalty_follows_its_schedule() -> None:
    model = network()
    wide = expand_(model, rw.find(model, X[:1]), "svd")
    technique = KeptOrthogonal("soft", 0.4, "cosine")
    loop(wide, technique, epochs=1).run()
    assert technique._penalty.weight == pytest.approx(0.4 * (1 + torch.cos(torch.tensor(torch.pi * 2 / 3))) / 2)


def turned(model: nn.Module, **options: Any) -> RanksInTurn:
    search = RankSearch(model, rw.find(model, X[:1]), formats=["svd"])
    return RanksInTurn(search, lambda outputs, _: outputs.square().mean(), every=2, **options)


def test_ranks_and_weights_in_turn_end_in_a_plan() -> None:
    model = network()
    technique = turned(model, keep={"params": 0.6})
    training = loop(model, technique, epochs=4)
    training.run()
    assert training.plan is not None
    assert training.plan.planned["params"] <= 0.6 * training.plan.dense["params"]
    assert any(float(alpha.detach().abs().max()) > 0.1 for alpha in technique.search.parameters())
    with pytest.raises(ValueError, match="every is 0"):
        RanksInTurn(technique.search, lambda outputs, _: outputs.sum(), every=0)


def test_a_search_goes_on_as_if_it_had_never_been_stopped(tmp_path: Path) -> None:
    whole = network()
    straight = loop(whole, first := turned(whole), epochs=3)
    straight.run()

    class Stop(Technique):
        def before_step(self, step: Step) -> None:
            if step.number == 7:
                raise KeyboardInterrupt

    file = tmp_path / "run.pt"
    cut = network()
    with pytest.raises(KeyboardInterrupt):
        loop(cut, turned(cut), Stop(), epochs=3, checkpoint=file).run()
    again = network()
    resumed = loop(again, second := turned(again), epochs=3, checkpoint=file, resume=True)
    resumed.run()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    for a, b in zip(first.search.parameters(), second.search.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.plan == straight.plan


def test_a_checkpoint_holds_no_techniques_without_a_state(tmp_path: Path) -> None:
    class Counts(Technique):
        steps = 0

        def before_step(self, step: Step) -> None:
            self.steps += 1

        def state_dict(self) -> dict[str, Any]:
            return {"steps": self.steps}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self.steps = state["steps"]

    from rankwise.training.checkpoint import read_checkpoint

    loop(network(), Technique(), checkpoint=tmp_path / "a").run()
    loop(network(), Technique(), Counts(), checkpoint=tmp_path / "b").run()
    assert "techniques" not in read_checkpoint(tmp_path / "a")
    assert read_checkpoint(tmp_path / "b")["techniques"] == [{}, {"steps": 6}]


def test_arguments_that_do_not_exist() -> None:
    with pytest.raises(TypeError, match=r"no argument 'file'; the further ones are checkpoint, progress, resume, run"):
        loop(network(), file="run.pt")
    model = network()
    with pytest.raises(TypeError, match="no argument 'epoch'; the further ones are amp, batch"):
        rw.heal(model, model, X, epoch=2)
    with pytest.raises(TypeError, match="no argument 'temperature'"):
        rw.training.train(model, X, X.argmax(1), temperature=2.0)


def test_the_technique_of_the_documentation() -> None:
    """Only a part of the network is trained for the first half."""

    class Thaw(Technique):
        def begin(self, model: nn.Module) -> None:
            self.body = list(model[0].parameters())  # type: ignore[index]
            self.seen: list[tuple[float, bool]] = []
            self.first = model[0].weight.detach().clone()  # type: ignore[index]
            self.model = model

        def before_step(self, step: Step) -> None:
            for parameter in self.body:
                parameter.requires_grad_(step.share >= 0.5)
            self.seen.append((step.share, torch.equal(self.first, self.model[0].weight)))  # type: ignore[index]

    thaw = Thaw()
    loop(network(), thaw, epochs=2).run()
    assert [(share, same) for share, same in thaw.seen if same] == [(k / 6, True) for k in range(4)]
