"""Ordered layers: prefixes of every kind of layer, sampling, shrinking, extraction."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.ordered import (
    Ordered,
    Sampler,
    counts,
    extract,
    importance,
    order_,
    ordered_layers,
    settle_,
    shrink_,
    using,
)
from rankwise.training import merge_

pytestmark = pytest.mark.usefixtures("one_thread")


class Attention(nn.Module):
    """One head with projections of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.o((self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x))


LAYERS: dict[str, tuple[nn.Module, Tensor]] = {
    "linear": (nn.Linear(8, 12), torch.randn(3, 8)),
    "no_bias": (nn.Linear(12, 5, bias=False), torch.randn(3, 12)),
    "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), torch.randn(2, 4, 11, 11)),
    "groups": (nn.Conv2d(4, 8, (3, 1), padding="same", groups=2, padding_mode="circular"), torch.randn(2, 4, 7, 7)),
    "transposed": (nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1, groups=2), torch.randn(2, 8, 5, 5)),
    "conv1d": (nn.Conv1d(4, 6, 5), torch.randn(2, 4, 9)),
}


def ordered(name: str) -> tuple[nn.Module, nn.Module, Tensor, rw.Sites]:
    """The dense network, the ordered one, an input and the sites."""
    layer, x = LAYERS[name]
    dense = nn.Sequential(copy.deepcopy(layer))
    sites = rw.find(dense, x)
    return dense, order_(copy.deepcopy(dense), sites), x, sites


@pytest.mark.parametrize("name", LAYERS)
def test_prefixes_are_truncated_svds(name: str) -> None:
    dense, model, x, sites = ordered(name)
    (site,) = sites.values()
    whole = ordered_layers(model)["0"].count
    assert whole == min(site.out_features // site.groups, site.in_features)
    assert torch.allclose(model(x), dense(x), atol=1e-5)
    with using(model, {"0": 0}):
        bias = dense[0].bias
        wanted = torch.zeros_like(dense(x))
        if bias is not None:
            wanted += bias.view(1, -1, *[1] * (wanted.dim() - 2))
        assert torch.allclose(model(x), wanted, atol=1e-6)
    for rank in {1, whole // 2}:
        with using(model, {"0": rank}):
            plan = rw.choose(dense, sites, pin={"0": f"svd:{rank}"}, metric="weight", keep={"params": 10**6})
            small = rw.factorise(dense, plan, sites)
            assert torch.allclose(model(x), small(x), atol=1e-5)


def test_every_width_uses_exactly_as_many_components() -> None:
    """The reference rounds a share of the width up and is off by one first at width 25, 7 components."""
    for width in (25, 31):
        model = nn.Sequential(nn.Linear(width, width, bias=False))
        layer = ordered_layers(order_(model, rw.find(model, torch.randn(1, width))))["0"]
        for count in range(1, width + 1):
            U, V = layer.factors(count)
            assert U.shape == (1, width, count)
            assert V.shape == (1, count, width)
            assert V.data_ptr() == layer[0].weight.data_ptr()  # a view


def test_projections_of_attention() -> None:
    model, x = Attention(), torch.randn(2, 5, 12)
    wanted, sites = model(x), rw.find(model, x)
    order_(model, sites, ["q", "k", "v", "o"])
    assert counts(model) == dict.fromkeys("qkvo", 12)
    assert torch.allclose(model(x), wanted, atol=1e-5)
    with using(model, {"q": 2, "v": 3}):
        nested = model(x)
    small, plan = extract(model, sites, {"q": 2, "v": 3})
    assert torch.allclose(small(x), nested, atol=1e-5)
    assert [row.ranks for row in plan.rows] == [(2,), (), (3,), ()]  # at full rank a layer is dense


def test_what_cannot_be_ordered_is_told() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    net, x = Net(), torch.randn(1, 3, 8)
    with pytest.raises(ValueError, match=r"nothing to order; site 'attention.out_proj' must stay as it is: "):
        order_(net, rw.find(net, x))
    with pytest.raises(ValueError, match="has no ordered layer; make some with order_"):
        ordered_layers(net)


def test_shrinking_removes_exactly_what_is_below_the_threshold() -> None:
    _, model, x, _ = ordered("groups")
    layer = ordered_layers(model)["0"]
    with torch.no_grad():
        U, V = layer.factors()
        layer.write(U * torch.tensor([1.0, 1.0, 0.0, 0.0]), V)
    before, size = model(x), importance(layer)
    assert bool((size[:-1] >= size[1:]).all())
    assert shrink_(model, 1e-7) == {"0": 2}
    assert torch.allclose(model(x), before, atol=1e-6)
    limit = float(importance(layer)[1])
    assert shrink_(model, limit) == {"0": 2}
    assert shrink_(model, limit * 1.001) == {"0": 1}


def test_active_components_survive_files_and_copies() -> None:
    _, model, x, _ = ordered("conv")
    with torch.no_grad():
        layer = ordered_layers(model)["0"]
        layer.keep(3)
        layer[0].weight.normal_()  # as an optimiser's momentum may: what has left does not come back
    fresh = ordered("conv")[1]
    fresh.load_state_dict(model.state_dict())
    for other in (fresh, copy.deepcopy(model)):
        assert counts(other) == {"0": 3}
        assert torch.equal(other(x), model(x))
    with pytest.raises(ValueError, match="3 components are left, so 4 cannot be kept"):
        layer.keep(4)


def test_merging_uses_the_active_components_only() -> None:
    _, model, x, _ = ordered("transposed")
    ordered_layers(model)["0"].keep(2)
    with torch.no_grad():
        ordered_layers(model)["0"][1].weight.add_(0.1)
    before = model(x)
    merge_(model)
    assert isinstance(model[0], nn.ConvTranspose2d)
    assert torch.allclose(model(x), before, atol=1e-5)


def test_a_layer_above_break_even_becomes_dense_again() -> None:
    dense, model, x, sites = ordered("linear")
    for rank, size in ((5, dense[0].weight.numel()), (4, 4 * 20)):  # 96 / (8 + 12) = 4.8
        with using(model, {"0": rank}):
            wanted = model(x)
        small, plan = extract(model, sites, {"0": rank})
        assert torch.allclose(small(x), wanted, atol=1e-5)
        assert sum(p.numel() for p in small.parameters()) == size + 12
        assert plan.planned["params"] == size + 12
    assert counts(model) == {"0": 8}  # it was not changed


def test_ranks_are_saved_with_the_model(tmp_path: object) -> None:
    dense, model, x, sites = ordered("conv")
    small, plan = extract(model, sites, {"0": 2})
    rw.save(small, f"{tmp_path}/out")
    loaded = rw.load(copy.deepcopy(dense), f"{tmp_path}/out")
    assert loaded[0].ranks == plan["0"].ranks == (2,)
    assert torch.equal(loaded(x), small(x))


def test_mistakes_in_ranks() -> None:
    _, model, _, sites = ordered("linear")
    with pytest.raises(ValueError, match="'1' is no ordered layer; these are 0"):
        extract(model, sites, {"1": 2})
    with pytest.raises(ValueError, match="would have no component, only a bias"):
        settle_(model, sites, "", {"0": 0})
    with pytest.raises(ValueError, match="layer '0' cannot use -1 components"), using(model, {"0": -1}):
        pass


def test_pairs_come_equally_often() -> None:
    active = {"a": 3, "b": 1, "c": 6}
    pairs = [(name, b) for name, count in active.items() for b in range(1, count + 1)]
    sampler = Sampler(seed=3)
    for _ in range(4):
        assert sorted(sampler(active) for _ in pairs) == sorted(pairs)
    sampler = Sampler("layers", seed=1)
    layers = Counter(sampler(active)[0] for _ in range(3000))
    # Three standard deviations of a share of a third.
    assert all(abs(layers[name] / 3000 - 1 / 3) < 3 * (2 / 9 / 3000) ** 0.5 for name in active)


def test_pairs_that_have_left_are_passed_over_and_states_resume() -> None:
    sampler = Sampler(seed=0)
    sampler({"a": 8, "b": 8})
    drawn = [sampler({"a": 2, "b": 8}) for _ in range(30)]
    assert all(count <= 2 for name, count in drawn if name == "a")
    other = Sampler(seed=0)
    other.load_state_dict(sampler.state_dict())
    assert [other({"a": 2, "b": 8}) for _ in range(30)] == [sampler({"a": 2, "b": 8}) for _ in range(30)]
    with pytest.raises(ValueError, match="written with sampler 'pairs' and seed 0, not 'layers' and 0; resume with"):
        Sampler("layers").load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="sampler 'all' is not one of pairs, layers"):
        Sampler("all")


def test_it_is_a_chain_like_others() -> None:
    _, model, _, _ = ordered("linear")
    layer = ordered_layers(model)["0"]
    assert isinstance(layer, Ordered)
    assert layer.in_features == 8
    assert layer.weight.shape == (12, 8)
    assert "8 of 8 components" in repr(layer)
