"""Networks that do not let another layer take the place of their own are found before any work."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.nets import batches_of, unchanged
from torch import Tensor, nn

import rankwise as rw


class Two(nn.Module):
    """Two layers; how the first is called is up to the case."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(16, 16), nn.Linear(16, 4)
        self.prepare()

    def prepare(self) -> None: ...

    def first(self, x: Tensor) -> Tensor:
        return self.a(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.first(x)))


class ByClass(Two):
    def first(self, x: Tensor) -> Tensor:
        return self.a(x) if isinstance(self.a, nn.Linear) else F.relu(x)


class ByExactType(Two):
    def first(self, x: Tensor) -> Tensor:
        for layer in (self.a,):
            if type(layer) is nn.Linear:
                x = layer(x)
        return x


class ByName(Two):
    def first(self, x: Tensor) -> Tensor:
        return self.a(x) if type(self.a).__name__ == "Linear" else self.a(2 * x)


class Asserting(Two):
    def first(self, x: Tensor) -> Tensor:
        assert isinstance(self.a, nn.Linear), "no linear layer"
        return self.a(x)


class InClosure(Two):
    def prepare(self) -> None:
        layer = self.a
        self.run = lambda x: layer(x)

    def first(self, x: Tensor) -> Tensor:
        return self.run(x)


class Reading(Two):
    def first(self, x: Tensor) -> Tensor:
        return self.a(x) / (1 + self.a.weight.abs().sum())


class Transposed(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.linear(torch.tanh(self.a(x)), self.a.weight.t()))


REFUSED = {
    ByClass: "does not call another layer",
    ByExactType: "does not call another layer",
    ByName: "computes something else",
    Asserting: "no linear layer",
    Reading: "its weight is used directly by Reading (the model itself)",
    Transposed: "its weight is used directly by Transposed (the model itself)",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_a_site_that_cannot_be_replaced_stays_dense_with_the_reason(kind: type[Two]) -> None:
    model, x = kind().eval(), torch.randn(2, 16)
    with unchanged(model):
        sites = rw.find(model, x)
    assert REFUSED[kind] in str(sites["a"].dense_because)
    assert kind.__name__ in str(sites["a"].dense_because)
    assert sites["c"].dense_because is None


def test_a_layer_in_a_closure_is_refused_with_the_place() -> None:
    with pytest.raises(ValueError, match=r"works on 'a\.\w+' .* attribute 'run' of InClosure"):
        rw.find(InClosure().eval(), torch.randn(2, 16))


class InList(Two):
    def prepare(self) -> None:
        self.stack = [self.a]

    def first(self, x: Tensor) -> Tensor:
        return self.stack[0](x)


class InNestedDict(Two):
    def prepare(self) -> None:
        self.heads = {"x": (self.a, 1)}

    def first(self, x: Tensor) -> Tensor:
        return self.heads["x"][0](x)


class InPartial(Two):
    def prepare(self) -> None:
        self.run = functools.partial(self.a)

    def first(self, x: Tensor) -> Tensor:
        return self.run(x)


class InInstanceDict(Two):
    def prepare(self) -> None:
        self.__dict__["alias"] = self.a

    def first(self, x: Tensor) -> Tensor:
        return self.alias(x)


class BoundForward(Two):
    def prepare(self) -> None:
        self.run = self.a.__call__

    def first(self, x: Tensor) -> Tensor:
        return self.run(x)


class ByProperty(Two):
    @property
    def layer(self) -> nn.Module:
        return self.a

    def first(self, x: Tensor) -> Tensor:
        return self.layer(x)


class ReadingType(Two):
    def first(self, x: Tensor) -> Tensor:
        weight = self.a.weight
        assert isinstance(weight, Tensor)
        assert weight.shape == (16, 16)
        assert weight.requires_grad
        return self.a(x.to(weight.dtype).to(weight.device))


@pytest.mark.parametrize(
    "kind", [InList, InNestedDict, InPartial, InInstanceDict, BoundForward, ByProperty, ReadingType]
)
@pytest.mark.parametrize("method", ["sequential", "one-shot"])
def test_layers_held_past_the_registry_are_replaced_there_too(kind: type[Two], method: str) -> None:
    torch.manual_seed(0)
    model, data = kind().eval(), batches_of(32, 16)
    with unchanged(model):
        small, report = rw.compress(model, data, keep={"macs": 0.6}, include=["a"], method=method)
    calls = []
    small.a.register_forward_hook(lambda *_: calls.append(1))
    small(data[0])
    assert calls == [1]
    assert report.compressed.macs == report.plan.planned["macs"] <= 0.6 * report.dense.macs
    out = rw.factorise_(kind().eval(), report.plan, data=data)
    assert isinstance(out.a, rw.LowRank)
    out(data[0])


def test_several_culprits_are_found_one_by_one() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            for number, layer in enumerate(self.layers):
                if number in (1, 4) and not isinstance(layer, nn.Linear):
                    raise TypeError(f"layer {number} is no Linear")
                x = torch.tanh(layer(x))
            return x

    sites = rw.find(Mixed().eval(), torch.randn(2, 8))
    assert [site.dense_because is None for site in sites.values()] == [True, False, True, True, False, True]
    assert "layer 4 is no Linear" in str(sites["layers.4"].dense_because)


def test_a_copy_that_works_on_the_network_it_was_copied_from_is_refused() -> None:
    norm = nn.LayerNorm(16)

    class Elsewhere(Two):
        def prepare(self) -> None:
            self.norm = norm

        def first(self, x: Tensor) -> Tensor:
            return norm(self.a(x))  # a global: the copy has a norm of its own

    with pytest.raises(ValueError, match=r"still works on 'norm\.\w+' of the network"):
        rw.find(Elsewhere().eval(), torch.randn(2, 16))


def test_a_network_that_never_computes_the_same_twice_is_judged_by_its_calls() -> None:
    class Counting(Two):
        def prepare(self) -> None:
            self.state: dict[str, Any] = {}

        def forward(self, x: Tensor) -> Tensor:
            CALLS.append(1)
            return super().forward(x) * len(CALLS)

    CALLS: list[int] = []
    sites = rw.find(Counting().eval(), torch.randn(2, 16))
    assert all(site.dense_because is None for site in sites.values())


def test_attention_and_its_projections_stay_what_they_are() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    sites = rw.find(model, torch.randn(2, 5, 16))
    assert "used directly" in str(sites["self_attn.out_proj"].dense_because)
