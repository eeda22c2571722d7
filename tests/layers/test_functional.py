"""`F.linear` with the weight of a layer becomes a call of that layer."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rankwise as rw
from rankwise.formats import get_format
from rankwise.layers.functional import CallsLayers
from rankwise.layers.low_rank import watching_weights


class Host(nn.Module):
    """Uses one layer by its weight, one by calling it; the bias as it is, changed, or its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.fc, self.called = nn.Linear(6, 4, bias=how != "beside"), nn.Linear(4, 3)
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        bias = {"as it is": self.fc.bias, "changed": self.fc.bias, "beside": self.shift, "left out": None}[self.how]
        if self.how == "changed":
            bias = bias.clone()
            bias[1:3].zero_()
        return self.called(F.linear(x * scale, self.fc.weight, bias))


HOW = ("as it is", "changed", "beside")


@pytest.fixture(params=HOW)
def host(request: pytest.FixtureRequest) -> Host:
    torch.manual_seed(0)
    return Host(request.param)


def calling(host: Host) -> Host:
    made = copy.deepcopy(host)
    made.forward = CallsLayers(made, ["fc"])  # type: ignore[method-assign]
    return made


def test_the_layer_is_called_once_and_nothing_changes(host: Host) -> None:
    made, calls, x = calling(host), list[str](), torch.randn(5, 6)
    for name in ("fc", "called"):
        made.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    torch.testing.assert_close(made(x, scale=2.0), host(x, scale=2.0))
    assert calls == ["fc", "called"]
    assert list(inspect.signature(made.forward).parameters) == ["x", "scale"]


@pytest.mark.parametrize("format", ["svd", "pivoted_svd"])
def test_a_chain_is_called_and_its_weight_never_computed(host: Host, format: str) -> None:
    made, x = calling(host), torch.randn(5, 6)
    layer = host.fc
    chain = get_format(format).build(made.fc, (4,), bias=True)
    with torch.no_grad():
        for parameter in chain.parameters():
            nn.init.normal_(parameter)
        made.fc = chain  # type: ignore[assignment]
        dense, own = chain.weight @ torch.eye(6), chain.bias
        assert own is not None
        bias = own if layer.bias is None else own.clone()
        if host.how == "changed":
            bias[1:3] = 0
        if host.how == "beside":  # the chain's own bias corrects the mean, the other one is added
            bias = own + made.shift
        wanted = made.called(F.linear(x, dense, bias))
        with watching_weights(lambda chain: pytest.fail("a dense weight was computed")):
            torch.testing.assert_close(made(x), wanted)
    assert torch.equal(made.fc.weight @ torch.eye(6), dense)  # outside the weight can be read


def test_copies_call_their_own_layers(host: Host) -> None:
    made, x = calling(host), torch.randn(2, 6)
    again = copy.deepcopy(made)
    nn.init.zeros_(again.fc.weight)
    torch.testing.assert_close(made(x), host(x))
    assert not torch.allclose(again(x), made(x))


def test_a_network_that_does_more_than_it_seems_stays_as_it_is() -> None:
    torch.manual_seed(0)
    host, x = Host("left out"), torch.randn(2, 6)  # the layer has a bias, and the forward leaves it out
    model = nn.Sequential(host)
    made = rw.unfused(model, x)
    torch.testing.assert_close(made(x), model(x))
    assert "used directly by Host" in str(rw.find(made, x)["0.fc"].dense_because)
