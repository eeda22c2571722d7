"""Odd hosts for the honesty benchmark: odd in how they reach their layers, draw, route, or remember.

A case may name the words with which its network is refused; what is not refused must be right.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.honesty_case import Case, images, rows, tokens


class Base(nn.Module):
    """Two layers; `hidden` is reached in an odd way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(32, 48), nn.Linear(48, 48), nn.Linear(48, 24)
        self.reach()

    def reach(self) -> None:
        """Take another reference to the layer."""

    def inner(self, x: Tensor) -> Tensor:
        return self.hidden(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.inner(torch.relu(self.first(x)))))


class InList(Base):
    def reach(self) -> None:
        self.stack = [self.hidden]

    def inner(self, x: Tensor) -> Tensor:
        return self.stack[0](x)


class InPartial(Base):
    def reach(self) -> None:
        self.apply_hidden = functools.partial(F.relu, inplace=False), functools.partial(self.hidden)

    def inner(self, x: Tensor) -> Tensor:
        return self.apply_hidden[1](x)


class InClosure(Base):
    def reach(self) -> None:
        layer = self.hidden
        self.call_hidden = lambda x: layer(x)

    def inner(self, x: Tensor) -> Tensor:
        return self.call_hidden(x)


class BoundMethod(Base):
    def reach(self) -> None:
        self.call_hidden = self.hidden.forward

    def inner(self, x: Tensor) -> Tensor:
        return self.call_hidden(x)


class ByClass(Base):
    """Skips layers of a class it does not know."""

    def inner(self, x: Tensor) -> Tensor:
        return self.hidden(x) if isinstance(self.hidden, nn.Linear) else x


class ByIndexing(nn.Module):
    """Runs every child that is a linear layer; all others are activations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if isinstance(layer, nn.Linear) else F.relu(x)
        return x


class ReadsWeight(Base):
    """Reads properties of a weight in every forward, as hosts in transformers do."""

    def inner(self, x: Tensor) -> Tensor:
        weight = self.hidden.weight
        return self.hidden(x.to(weight.dtype).to(weight.device)[..., : weight.shape[1]])


class UsesWeight(Base):
    def inner(self, x: Tensor) -> Tensor:
        return F.linear(x, self.hidden.weight, self.hidden.bias)


class TiedByMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 40)
        self.second.weight = nn.Parameter(self.first.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Subclass(nn.Linear):
    """A linear layer that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.5


class LookAlike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.odd, self.plain, self.last = Subclass(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.plain(torch.tanh(self.odd(x)))))


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.decode, self.out = (
            nn.Linear(40, 48),
            nn.Linear(48, 24),
            nn.Linear(24, 48),
            nn.Linear(48, 40),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(torch.relu(self.encode(x)))
        return self.out(torch.relu(self.decode(mean + 0.5 * torch.randn_like(mean))))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(32, 48), nn.Linear(48, 4)
        self.experts, self.last = nn.ModuleList(nn.Linear(48, 48) for _ in range(4)), nn.Linear(48, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        weight, chosen = self.gate(x).softmax(-1).max(-1)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            held = (chosen == number).nonzero().flatten()
            y = y.index_add(0, held, expert(x[held]) * weight[held, None])
        return self.last(y)


class EmptyCalls(Base):
    """A branch that most samples, and some whole batches, do not take."""

    def inner(self, x: Tensor) -> Tensor:
        taken = (x.mean(-1) > x.mean() + 0.1).nonzero().flatten()
        return x.index_copy(0, taken, self.hidden(x[taken]))


class Parts(Base):
    """Calls a layer for each part of a batch; one sample is one part."""

    def inner(self, x: Tensor) -> Tensor:
        return torch.cat([self.hidden(part) for part in x.split(4)])


class Inferring(Base):
    """Turns gradients off for good."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Vmapped(Base):
    def inner(self, x: Tensor) -> Tensor:
        return torch.vmap(self.hidden)(x)


class BatchOnly(Base):
    """Compares the samples of a batch; a single sample has none to compare with."""

    def inner(self, x: Tensor) -> Tensor:
        if len(x) < 2:
            raise ValueError("needs two samples or more")
        return self.hidden(x) - self.hidden(x).mean(0) / len(x)


class TimeFirst(nn.Module):
    """Steps x samples x features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(24, 48), nn.Linear(48, 48), nn.Linear(48, 24)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[0] == 7, "seven steps"
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)).cumsum(0) / 3)))


class Remembers(Base):
    """Records its inputs in plain attributes."""

    def reach(self) -> None:
        self.trace: Tensor | None = torch.zeros(48)
        self.steps = 0

    def inner(self, x: Tensor) -> Tensor:
        self.trace, self.steps = 0.9 * self.trace + x.detach().mean(0), self.steps + 1
        return self.hidden(x)


class KeepsActivation(Base):
    def inner(self, x: Tensor) -> Tensor:
        self.kept = self.hidden(x)
        return self.kept


class ReadsAttributes(nn.Module):
    """Reads properties of a convolution, and adapts to them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.last = nn.Conv2d(4, 24, 3), nn.Conv2d(24, 24, 3, stride=2), nn.Conv2d(24, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        pad = self.wide.kernel_size[0] // 2 * self.wide.dilation[0] + self.wide.padding[0]
        return self.last(torch.relu(self.wide(F.pad(torch.relu(self.first(x)), (pad,) * 4))) / self.wide.stride[0])


class Inside(Base):
    """Takes a gradient in its forward."""

    def inner(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.hidden(point).square().sum(), point)
        return self.hidden(x) - 0.01 * slope


def hooked(model: Any, x: Any) -> None:
    """A user's hooks, before and after a layer."""
    model.hidden.register_forward_hook(lambda module, args, output: output * 1.25)
    model.hidden.register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))


def frozen(model: Any, x: Any) -> None:
    model.hidden.weight.requires_grad_(False)
    model.first.train()


def ran(model: Any, x: Any) -> None:
    model(x)


def small_numbers(model: Any, x: Any) -> None:
    with torch.no_grad():
        model.hidden.weight.mul_(1e-6)
        model.last.weight.mul_(1e6)


def _case(kind: str, name: str, build: Any, batch: Any = None, **options: Any) -> Case:
    return Case(name=name, kind=kind, build=build, batch=batch or rows(64, 32), **options)


HIDDEN = ("hidden",)
CASES = (
    _case("A", "layer in a list", InList, refused=HIDDEN),
    _case("A", "layer in a partial", InPartial, refused=HIDDEN),
    _case("A", "layer in a closure", InClosure, refused=HIDDEN),
    _case("A", "bound method", BoundMethod, refused=HIDDEN),
    _case("A", "known by class", ByClass, refused=HIDDEN),
    _case("A", "others are activations", ByIndexing, refused=("layers.",)),
    _case("A", "reads dtype and shape", ReadsWeight),
    _case("A", "uses the weight", UsesWeight, budgets=({"macs": 0.9}, {"macs": 0.8})),
    _case("A", "hooks of a user", Base, before=hooked),
    _case("B", "noise", Noise, rows(64, 40)),
    _case("B", "dropout that stays on", lambda: nn.Sequential(nn.Linear(32, 64), Always(), nn.Linear(64, 32))),
    _case("B", "mixture of experts", Experts, whole=True, routed=True),
    _case("C", "tied by memory", TiedByMemory, rows(64, 40), refused=("first",)),
    _case("C", "subclass", LookAlike),
    _case("D", "empty calls", EmptyCalls, whole=True, routed=True),
    _case("D", "parts of a batch", Parts),
    _case("F", "inference mode", Inferring),
    _case("F", "vmap", Vmapped, refused=HIDDEN),
    _case("D", "batches only", BatchOnly, whole=True),
    _case("D", "time first", TimeFirst, rows(7, 32, 24), whole=True),
    _case("E", "reads attributes", ReadsAttributes, images(8, 4, 12, 12)),
    _case("E", "frozen and half in training", Base, before=frozen),
    _case("F", "gradient inside", Inside, refused=HIDDEN),
    _case("F", "keeps an activation", KeepsActivation, before=ran, refused=("kept",)),
    _case("G", "half precision", lambda: Base().half(), lambda g: rows(64, 32)(g).half()),
    _case("G", "bfloat16", lambda: Base().bfloat16(), lambda g: rows(64, 32)(g).bfloat16()),
    _case("G", "huge and tiny scales", Base, before=small_numbers),
    _case("G", "huge half precision", lambda: Base().half(), lambda g: (rows(64, 32)(g) * 200).half()),
    _case("H", "state in attributes", Remembers),
    _case(
        "I",
        "any length",
        lambda: nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 32)),
        tokens(16, 11, 50),
    ),
)


class Always(nn.Module):
    """Dropout in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(torch.relu(x), 0.3, True)
