"""State that is neither parameter nor buffer: handed back, copied, and had by the compressed network too."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from support.nets import batches_of
from torch import Tensor, nn

import rankwise as rw
from rankwise.running.copying import copied
from rankwise.running.pristine import pristine


class Spiking(nn.Module):
    """Keeps a membrane, a count, and lists of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(16, 16), nn.Linear(16, 4)
        self.membrane: Tensor | None = None
        self.steps = 0
        self.seen: list[Tensor] = []
        self.last: dict[str, Any] = {}
        self.names: set[str] = set()
        self.register_buffer("trace", None)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        if self.membrane is None or self.membrane.shape != h.shape:
            self.membrane = h
        else:
            self.membrane.mul_(0.9).add_(h)  # written in place
        self.steps += 1
        self.seen.append(h)
        self.last["h"] = h
        self.names.add(str(self.steps))
        self.trace = h
        self.feature = h  # not there before the first call
        return self.c(self.membrane)


def state_of(model: Spiking) -> tuple[Any, ...]:
    return (
        None if model.membrane is None else model.membrane.tolist(),
        model.steps,
        [tensor.tolist() for tensor in model.seen],
        {key: value.tolist() for key, value in model.last.items()},
        set(model.names),
        None if model.trace is None else model.trace.tolist(),
        hasattr(model, "feature"),
    )


@pytest.mark.parametrize("runs", [0, 1, 3])
@pytest.mark.parametrize("method", ["sequential", "one-shot"])
def test_state_is_handed_back_and_had_by_the_compressed_network(runs: int, method: str) -> None:
    torch.manual_seed(0)
    model, data = Spiking().eval(), batches_of(32, 16)
    with torch.no_grad():
        for batch in data[:runs]:
            model(batch)
    before = state_of(model)
    small, _ = rw.compress(model, data, keep={"macs": 0.8}, method=method)
    assert state_of(model) == before
    assert state_of(small) == before


def test_state_is_handed_back_after_an_error() -> None:
    model = Spiking().eval()
    before = state_of(model)

    def fails() -> None:
        with pristine(model):
            model(torch.randn(2, 16))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fails()
    assert state_of(model) == before


@pytest.mark.parametrize("place", ["attribute", "list", "dictionary"])
def test_activations_with_a_graph_are_copied_without_it(place: str) -> None:
    model = Spiking().eval()
    kept = model.a(torch.randn(2, 16))
    if place == "attribute":
        model.membrane = kept
    elif place == "list":
        model.seen.append(kept)
    else:
        model.last["h"] = kept
    made = copied(model)
    other = {"attribute": made.membrane, "list": [*made.seen, None][0], "dictionary": made.last.get("h")}[place]
    assert other is not None
    assert torch.equal(other, kept)
    assert not other.requires_grad
    assert other.data_ptr() != kept.data_ptr()
    assert kept.requires_grad


@pytest.mark.parametrize("what", [threading.Lock(), (number for number in range(3))], ids=["lock", "generator"])
def test_what_cannot_be_copied_is_named_before_the_work(what: object) -> None:
    model = nn.Sequential(Spiking(), nn.ReLU()).eval()
    model[0].guard = what
    with pytest.raises(ValueError, match=r"attribute 'guard' of Spiking \(0\) cannot be copied"):
        rw.collect(model, batches_of(8, 16))


def test_a_forward_that_keeps_what_it_computes_is_traced_and_run_without_a_graph() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.mean: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            self.mean = h.mean(0) if self.mean is None else 0.5 * self.mean + 0.5 * h.mean(0)
            return h + self.b(h - self.mean)

    torch.manual_seed(0)
    model, data = Keeping().eval(), batches_of(32, 16)
    stats = rw.collect(model, data)
    plan = rw.choose(model, stats, keep={"macs": 0.8})
    for engine in ("auto", "hooks"):
        small = rw.factorise(model, plan, stats, data=data, engine=engine)
        assert model.mean is None
        assert small.mean is None
