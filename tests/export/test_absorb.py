"""Index operations of sparse low rank that neighbours take over, and those that have to stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from support.nets import make
from torch import Tensor, nn

import rankwise as rw
from rankwise.export import absorbed
from rankwise.formats import Ranks

pytestmark = pytest.mark.usefixtures("one_thread")


def reduced(model: nn.Module, x: Tensor, ranks: Mapping[str, tuple[str, Ranks]]) -> nn.Module:
    sites = rw.find(model, x)
    ignored = [name for name in sites if name not in ranks]
    plan = rw.choose(model, sites, keep={"params": 1.0}, metric="weight", pin=dict(ranks), ignore=ignored)
    return rw.factorise(model, plan, sites).eval()


def gathers(model: nn.Module, x: Tensor) -> int:
    program = torch.export.export(model, (x,))
    return sum("index_select" in str(node.target) for node in program.graph.nodes)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 24), nn.GELU(), nn.Dropout(), nn.Linear(24, 6))


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 5, 1)),
    )


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, tuple[str, Ranks]], int, int]] = {
    "both sides": (mlp, (4, 12), {"2": ("slr", (3, 4, 10, 12))}, 2, 0),
    "three levels": (mlp, (4, 12), {"2": ("slr3", (3, 2, 10, 12, 2, 5, 6))}, 2, 0),
    "no rank for the others": (mlp, (4, 12), {"2": ("slr", (0, 4, 10, 12))}, 2, 0),
    "beside an svd": (mlp, (4, 12), {"0": ("svd", (3,)), "2": ("slr", (3, 4, 10, 12)), "5": ("svd", (3,))}, 2, 0),
    # the value between the two is made in an order and read in another one: one of them stays
    "two in a row": (mlp, (4, 12), {"2": ("slr", (3, 4, 10, 12)), "5": ("slr", (1, 3, 8, 4))}, 4, 2),
    "the input of the network": (mlp, (4, 12), {"0": ("slr", (2, 3, 6, 10))}, 2, 1),
    "the output of the network": (mlp, (4, 12), {"5": ("slr", (1, 2, 12, 3))}, 2, 1),
    "convolutions": (cnn, (2, 3, 10, 10), {"4": ("slr", (3, 4, 6, 8))}, 2, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_neighbours_take_over(name: str) -> None:
    build, shape, ranks, before, after = CASES[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    small = reduced(make(build), x, ranks)
    kept = {key: value.clone() for key, value in small.state_dict().items()}
    sorted_ = absorbed(small)
    assert (gathers(small, x), gathers(sorted_, x)) == (before, after)
    with torch.no_grad():
        torch.testing.assert_close(sorted_(x), small(x), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, kept[key]) for key, value in small.state_dict().items())
    for key in ranks:  # the chain still knows its weight
        chain, dense = sorted_.get_submodule(key), small.get_submodule(key)
        assert chain.weight.shape == dense.weight.shape
        assert chain.weight.norm().item() == pytest.approx(dense.weight.norm().item(), rel=1e-5)


class Branching(nn.Module):
    """A value that two layers read, a layer that is used twice, a flattening, and a norm over the features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.other = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.twice, self.norm, self.last = nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        h = self.middle(h) + self.other(h)
        h = self.twice(torch.tanh(self.twice(h)))
        return self.last(self.norm(h))


def test_where_it_is_not_legal_indices_stay() -> None:
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    names = ("first", "middle", "other", "twice", "last")
    small = reduced(make(Branching), x, {name: ("slr", (2, 2, 6, 6 if name != "last" else 2)) for name in names})
    sorted_ = absorbed(small)
    assert gathers(sorted_, x) == gathers(small, x) == 12
    torch.testing.assert_close(sorted_(x), small(x))


class Shared(nn.Module):
    """A norm that is called twice between the two layers, and a weight that is read elsewhere."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(F.relu(self.norm(self.first(x))))
        return self.norm(y) if self.twice else y + F.conv2d(x, self.first.weight)


@pytest.mark.parametrize("twice", [True, False])
def test_what_is_used_elsewhere_keeps_its_order(twice: bool) -> None:
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    model = make(lambda: Shared(twice))
    torch.nn.init.uniform_(model.norm.running_mean, 0.5, 2.0)
    small = reduced(model.eval(), x, {"last": ("slr", (2, 2, 4, 5))})
    sorted_ = absorbed(small)
    assert gathers(sorted_, x) == gathers(small, x)
    torch.testing.assert_close(sorted_(x), small(x))


def test_a_network_that_cannot_be_traced() -> None:
    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="Asking cannot be traced"):
        absorbed(Asking())
