"""Value and output projections of attention as one site: found, checked in the network, compressed, stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.layers.kinds import Role
from rankwise.network.site import Heads
from rankwise.training import merge_

WIDTH, SIZE, HEADS = 12, 3, 4
# All that is not pinned stays dense.
RULE = "energy:share=1.0"


class Attention(nn.Module):
    """Self-attention whose values and output projection a subclass changes; `shared` query heads for each value."""

    shared = 1
    size = SIZE

    def __init__(self) -> None:
        super().__init__()
        values = HEADS // self.shared * self.size
        self.q, self.k = nn.Linear(WIDTH, HEADS * SIZE), nn.Linear(WIDTH, HEADS * SIZE)
        self.v, self.o = nn.Linear(WIDTH, values), nn.Linear(HEADS * self.size, WIDTH)

    def values(self, x: Tensor) -> Tensor:
        return self.v(x).unflatten(-1, (-1, self.size))

    def weights(self, x: Tensor) -> Tensor:
        q, k = (layer(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for layer in (self.q, self.k))
        return (q @ k.mT / SIZE**0.5).softmax(-1)

    def mixed(self, x: Tensor) -> Tensor:
        values = self.values(x).transpose(1, 2).repeat_interleave(self.shared, 1)
        return (self.weights(x) @ values).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.o(self.mixed(x).flatten(2))


class Shared(Attention):
    """Two query heads for each value."""

    shared = 2


class Wider(Attention):
    """Values of another size than queries and keys."""

    size = 5


class Fused(Attention):
    """One layer computes queries, keys and values, side by side for each head."""

    def __init__(self) -> None:
        super().__init__()
        del self.q, self.k, self.v
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * SIZE)

    def mixed(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (HEADS, 3 * SIZE)).transpose(1, 2).split(SIZE, -1)
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2)


class Turned(Attention):
    """Values are rotated by their position, as queries and keys often are."""

    def values(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None, None]
        v = super().values(x)
        return v * angle.cos() + v.roll(1, -1) * angle.sin()


class Normed(Attention):
    """A norm of each head's values, which no rotation of them changes."""

    def values(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(super().values(x), dim=-1)


class NormedAfter(Attention):
    """A norm of what comes of the heads."""

    def mixed(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(super().mixed(x), dim=-1)


class Gated(Attention):
    """What comes of the heads is multiplied by a gate."""

    def mixed(self, x: Tensor) -> Tensor:
        return super().mixed(x) * x.unflatten(-1, (HEADS, SIZE)).sigmoid()


class Odd(Attention):
    """A function of each value."""

    def values(self, x: Tensor) -> Tensor:
        return super().values(x).tanh()


class Talking(Attention):
    """What comes of one head goes into another."""

    def mixed(self, x: Tensor) -> Tensor:
        mixed = super().mixed(x)
        return mixed + mixed.roll(1, 2)


class Read(Attention):
    """Values have a second reader."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.v(x).cumsum(-1)


class Linear(Attention):
    """Two linear layers, without attention in between."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.o(self.v(x))


FITTING = {"plain": Attention, "shared": Shared, "wider": Wider, "fused": Fused}
OTHERS = [Turned, Normed, NormedAfter, Gated, Odd, Talking, Read, Linear]


def network(part: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, WIDTH), part(), nn.LayerNorm(WIDTH), part(), nn.Linear(WIDTH, 5)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(2)  # so that attention is not nearly even
    return model


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 7, 6, generator=generator) for _ in range(3)]


def heads(sites: rw.Sites) -> list[rw.Site]:
    return [site for site in sites.values() if site.role is Role.HEADS]


@pytest.mark.parametrize("name", FITTING)
def test_found(name: str) -> None:
    model, part = network(FITTING[name]), FITTING[name]
    sites, alone = rw.find(model, batches()[0][:1], joint=True), rw.find(model, batches()[0][:1])
    found = heads(sites)
    assert len(found) == 2
    assert sites.joint == ("heads",)
    first, stride = (2 * SIZE, 3 * SIZE) if name == "fused" else (0, part.size)
    for site in found:
        assert site.heads == Heads(size=part.size, shared=part.shared, first=first, stride=stride)
        assert site.params == sum(alone[each].params for each in site.names)
        assert site.macs == sum(alone[each].macs for each in site.names)
        assert site.weight_shape == (WIDTH, HEADS * part.size)
    assert sites.total_macs == alone.total_macs
    assert len(sites) == len(alone) - 2
    assert rw.find(model, batches()[0], joint=("hidden",)).keys() == alone.keys()


@pytest.mark.parametrize("part", OTHERS)
def test_what_attention_does_not_leave_alone_is_left_to_single_layers(part: type[nn.Module]) -> None:
    model = network(part)
    assert rw.find(model, batches()[0], joint=True).keys() == rw.find(model, batches()[0]).keys()


@pytest.mark.parametrize("example", [torch.zeros(1, 7, 6), torch.ones(2, 5, 6)])
def test_heads_are_told_apart_whatever_the_example(example: Tensor) -> None:
    """Attention is even in all heads where all positions are the same."""
    for site in heads(rw.find(network(Shared), example, joint=True)):
        assert site.heads == Heads(size=SIZE, shared=2, first=0, stride=SIZE)


def test_one_position_says_nothing_about_heads() -> None:
    assert not heads(rw.find(network(Attention), batches()[0][:, :1], joint=True))


def test_blocks_that_add_very_little_are_checked_as_closely() -> None:
    model = network(NormedAfter)
    with torch.no_grad():
        for block in (model[1], model[3]):
            block.o.weight.mul_(1e-6)
            block.o.bias.zero_()
    assert not heads(rw.find(model, batches()[0], joint=True))


def test_kinds_by_name() -> None:
    with pytest.raises(ValueError, match=r"joint: 'head' must be True, False or a list of .*heads"):
        rw.find(network(Attention), batches()[0], joint=("head",))
    assert heads(rw.find(network(Attention), batches()[0], joint=("heads",)))


def test_the_network_is_left_alone() -> None:
    model = network(Fused).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    rw.find(model, batches()[0], joint=True)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name, method", [*((name, "one-shot") for name in FITTING), ("shared", "sequential")])
def test_exact_at_full_size_and_counted_to_the_unit(name: str, method: str) -> None:
    model, data = network(FITTING[name]), batches()
    stats = rw.collect(model, data, joint=True)
    names, inputs = [site.name for site in heads(stats.sites)], HEADS * FITTING[name].size
    given: dict[str, Any] = {"stats": stats} if method == "one-shot" else {"data": data}

    def made(kept: int) -> tuple[rw.Plan, nn.Module]:
        pins = dict.fromkeys(names, f"head_svd:{kept}")
        plan = rw.choose(model, stats, pin=pins, include=names, rule=RULE)
        return plan, rw.factorise(model, plan, **given)

    torch.testing.assert_close(made(inputs)[1](data[0]), model(data[0]), atol=1e-5, rtol=1e-5)
    plan, small = made(6)
    assert sum(parameter.numel() for parameter in small.parameters()) == plan.planned["params"]
    assert rw.find(small, data[0][:1]).total_macs == plan.planned["macs"]


def test_the_error_is_the_one_that_was_promised() -> None:
    model, data = network(Shared), batches()
    stats = rw.collect(model, data, joint=True)
    name = heads(stats.sites)[0].name
    plan = rw.choose(model, stats, pin={name: "head_svd:8"}, include=name, rule=RULE)
    small = rw.factorise(model, plan, stats)
    x = torch.cat([model[0](batch) for batch in data])
    with torch.no_grad():
        dense, made = model[1](x) - x, small[1](x) - x
    error = (dense - made).square().sum() / (dense - dense.mean((0, 1))).square().sum()
    assert plan[name].error == pytest.approx(float(error), rel=0.05)


def test_planted_heads_of_lower_rank_are_recovered() -> None:
    """The output projection reads one direction of the values of each head."""
    model, data = network(Shared), batches()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        read = torch.randn(WIDTH, HEADS // 2, 2, 1, generator=generator)
        model[1].o.weight.copy_((read * torch.randn(HEADS // 2, 1, SIZE, generator=generator)).flatten(1))
    stats = rw.collect(model, data, joint=True)
    plan = rw.choose(model, stats, pin={"1.v": "head_svd:4"}, include="1.v", rule=RULE)
    small = rw.factorise(model, plan, stats)
    torch.testing.assert_close(small(data[0]), model(data[0]), atol=1e-3, rtol=1e-3)
    assert small[1].v[0].weight.shape == (2, WIDTH)
    assert small[1].o[1].weight.shape == (WIDTH, 4)


@pytest.mark.parametrize("metric", ["weight", "diagonal", "fisher"])
def test_other_metrics(metric: str) -> None:
    model, data = network(Attention), batches()
    stats = rw.collect(model, data, joint=True, gradients=metric == "fisher")
    names = [site.name for site in heads(stats.sites)]
    plan = rw.choose(model, stats, pin=dict.fromkeys(names, "head_svd:9"), include=names, metric=metric, rule=RULE)
    small = rw.factorise(model, plan, stats)
    assert (small(data[0]) - model(data[0])).norm() < 0.5 * model(data[0]).norm()


@pytest.mark.parametrize(
    "name, dtype", [("shared", torch.float32), ("fused", torch.float32), ("fused", torch.bfloat16)]
)
def test_stored_and_loaded(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, data = network(FITTING[name]).to(dtype), [batch.to(dtype) for batch in batches()]
    stats = rw.collect(model, data, joint=True)
    names = [site.name for site in heads(stats.sites)]
    assert len(names) == 2
    plan = rw.choose(model, stats, pin=dict.fromkeys(names, "head_svd:8"), include=names, rule=RULE)
    small = rw.factorise(model, plan, stats)
    rw.save(small, tmp_path / "out")
    loaded = rw.load(network(FITTING[name]).to(dtype), tmp_path / "out", example=data[0])
    assert torch.equal(loaded(data[0]), small(data[0]))
    assert {module.role for module in loaded.modules() if hasattr(module, "role")} == {Role.HEADS, Role.FEEDER}


def test_statistics_and_plans_are_stored(tmp_path: Path) -> None:
    model, data = network(Fused), batches()
    stats = rw.collect(model, data, joint=True)
    stats.save(tmp_path / "stats.safetensors")
    read = rw.Statistics.load(tmp_path / "stats.safetensors")
    assert read.sites == stats.sites
    name = heads(stats.sites)[0].name
    plan = rw.choose(model, read, pin={name: "head_svd:7"}, include=name, rule=RULE)
    plan.save(tmp_path / "plan.yaml")
    one, other = (rw.factorise(model, each, read)(data[0]) for each in (plan, rw.Plan.load(tmp_path / "plan.yaml")))
    assert torch.equal(one, other)
    # A plan alone says that it is for these sites.
    assert torch.isfinite(rw.factorise(model, rw.Plan.load(tmp_path / "plan.yaml"), data=data)(data[0])).all()


def test_trained_merged_and_exported() -> None:
    model, data = network(Shared).train(), batches()
    stats = rw.collect(model, data, joint=True)
    names = [site.name for site in heads(stats.sites)]
    small = rw.factorise(
        model, rw.choose(model, stats, pin=dict.fromkeys(names, "head_svd:8"), include=names, rule=RULE), stats
    )
    small(data[0]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    small.eval()
    exported = torch.export.export(small, (data[0],)).module()
    torch.testing.assert_close(exported(data[0]), small(data[0]))
    expected = small(data[0])
    torch.testing.assert_close(merge_(small)(data[0]), expected, atol=1e-5, rtol=1e-5)
