"""The layers around hidden units as one site: found, checked in the network, compressed, stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.layers.kinds import Role


class Plain(nn.Module):
    """`x + W_2 act(W_1 x)`."""

    def __init__(self, width: int = 12, units: int = 40, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, units), act(), nn.Linear(units, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.act(self.fc1(x)))


class Gated(nn.Module):
    """`x + W_d (silu(W_g x) * W_u x)`, defined in another order than it runs."""

    def __init__(self, width: int = 12, units: int = 40) -> None:
        super().__init__()
        self.down = nn.Linear(units, width, bias=False)
        self.up, self.gate = nn.Linear(width, units, bias=False), nn.Linear(width, units, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Fused(nn.Module):
    """Gate and up in one layer."""

    def __init__(self, width: int = 12, units: int = 40) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(width, 2 * units), nn.Linear(units, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)


class Normed(Plain):
    """A norm over the units: leaving some out changes all others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(40)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.norm(self.act(self.fc1(x))))


class Mixed(Plain):
    """Units are mixed before they are read."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(x).cumsum(-1))


class Heads(Plain):
    """The units are heads of a fixed size, which a narrower layer would break."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(x).reshape(*x.shape[:-1], 4, 10).softmax(-1).flatten(-2))


class Read(Plain):
    """A second reader: the units are an output too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        hidden = self.act(self.fc1(x))
        return self.fc2(hidden), hidden


FITTING = {"plain": Plain, "gated": Gated, "fused": Fused}


def network(part: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), part(), nn.LayerNorm(12), part(), nn.Linear(12, 5)).eval()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 7, 6, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("name", FITTING)
def test_found(name: str) -> None:
    model = network(FITTING[name])
    sites, alone = rw.find(model, batches()[0][:1], joint=True), rw.find(model, batches()[0][:1])
    hidden = [site for site in sites.values() if site.role is Role.HIDDEN]
    assert len(hidden) == 2
    assert sites.joint
    assert not alone.joint
    for site in hidden:
        assert site.params == sum(alone[name].params for name in site.names)
        assert site.macs == sum(alone[name].macs for name in site.names)
        assert site.weight_shape == (12, 40)
    assert sites.total_macs == alone.total_macs
    assert len(sites) == len(alone) - sum(len(site.names) - 1 for site in hidden)


@pytest.mark.parametrize("part", [Normed, Mixed, Heads])
def test_units_that_depend_on_each_other_are_left_to_single_layers(part: type[nn.Module]) -> None:
    model = network(part)
    assert rw.find(model, batches()[0], joint=True).keys() == rw.find(model, batches()[0]).keys()


@pytest.mark.parametrize("part", [Normed, Mixed, Heads])
def test_blocks_that_add_very_little_are_checked_as_closely(part: type[nn.Module]) -> None:
    model = network(part)
    with torch.no_grad():
        for block in (model[1], model[3]):
            block.fc2.weight.mul_(1e-6)
            block.fc2.bias.zero_()
    assert rw.find(model, batches()[0], joint=True).keys() == rw.find(model, batches()[0]).keys()


def test_statistics_of_single_layers_are_not_taken_for_joint_ones() -> None:
    model, data = network(Plain), batches()
    with pytest.raises(ValueError, match="joint=True has no effect on these statistics"):
        rw.compress(model, data, keep={"params": 0.8}, stats=rw.collect(model, data), method="one-shot", joint=True)
    small, _ = rw.compress(model, data, keep={"params": 0.8}, method="one-shot", joint=True)
    assert small[1].fc1.role is Role.FEEDER


def test_units_that_something_else_reads_are_left_to_single_layers() -> None:
    model = Read().eval()
    x = torch.randn(3, 12)
    assert list(rw.find(model, x, joint=True)) == ["fc1", "fc2"]


def test_one_that_does_not_fit_does_not_keep_others_out() -> None:
    model = nn.Sequential(Plain(), Normed(), Gated()).eval()
    sites = rw.find(model, torch.randn(4, 12), joint=True)
    assert {name: site.role for name, site in sites.items()} == {
        "0.fc1": Role.HIDDEN,
        "1.fc1": Role.LAYER,
        "1.fc2": Role.LAYER,
        "2.gate": Role.HIDDEN,
    }


def test_random_numbers_and_the_network_are_left_alone() -> None:
    model = network(Gated).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    rw.find(model, batches()[0], joint=True)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("method", ["one-shot", "sequential"])
@pytest.mark.parametrize("name", FITTING)
def test_exact_at_full_size_and_counted_to_the_unit(name: str, method: str) -> None:
    model, data = network(FITTING[name]), batches()
    stats = rw.collect(model, data, joint=True)
    hidden = [site.name for site in stats.sites.values() if site.role is Role.HIDDEN]
    given = {"stats": stats} if method == "one-shot" else {"data": data}
    full = rw.choose(model, stats, pin=dict.fromkeys(hidden, "nystrom:40"), include=hidden, rule="energy:share=1.0")
    torch.testing.assert_close(rw.factorise(model, full, **given)(data[0]), model(data[0]), atol=1e-5, rtol=1e-5)
    plan = rw.choose(model, stats, pin=dict.fromkeys(hidden, "nystrom:24"), include=hidden, rule="energy:share=1.0")
    small = rw.factorise(model, plan, **given)
    assert sum(parameter.numel() for parameter in small.parameters()) == plan.planned["params"]
    assert rw.find(small, data[0][:1]).total_macs == plan.planned["macs"]
    again = rw.find(model, data[0][:1], joint=True)
    assert plan[hidden[0]].macs == again[hidden[0]].macs * 24 // 40


def test_the_error_is_the_one_that_was_promised() -> None:
    model, data = network(Plain), batches()
    stats = rw.collect(model, data, joint=True)
    plan = rw.choose(model, stats, pin={"1.fc1": "nystrom:20"}, include="1.fc1", rule="energy:share=1.0")
    small = rw.factorise(model, plan, stats)
    x = torch.cat([model[0](batch) for batch in data])
    with torch.no_grad():
        dense, made = model[1](x) - x, small[1](x) - x
    error = (dense - made).square().sum() / (dense - dense.mean((0, 1))).square().sum()
    assert plan["1.fc1"].error == pytest.approx(float(error), rel=0.05)


def test_a_planted_narrow_layer_is_recovered() -> None:
    """Half of the units are copies of the others."""
    model, data = network(Gated), batches()
    with torch.no_grad():
        for layer in (model[1].gate, model[1].up):
            layer.weight[20:] = layer.weight[:20]
    stats = rw.collect(model, data, joint=True)
    plan = rw.choose(model, stats, pin={"1.gate": "nystrom:20"}, include="1.gate", rule="energy:share=1.0")
    small = rw.factorise(model, plan, stats)
    torch.testing.assert_close(small(data[0]), model(data[0]), atol=1e-3, rtol=1e-3)
    assert sorted(place % 20 for place in small[1].down[0].places.tolist()) == list(range(20))


@pytest.mark.parametrize("metric", ["weight", "diagonal", "fisher"])
def test_other_metrics(metric: str) -> None:
    model, data = network(Plain), batches()
    stats = rw.collect(model, data, joint=True, gradients=metric == "fisher")
    plan = rw.choose(model, stats, keep={"params": 0.7}, metric=metric)
    small = rw.factorise(model, plan, stats)
    assert any(row.format == "nystrom" for row in plan.rows)
    assert (small(data[0]) - model(data[0])).norm() < 0.5 * model(data[0]).norm()


@pytest.mark.parametrize("name", FITTING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_and_loaded(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, data = network(FITTING[name]).to(dtype), [batch.to(dtype) for batch in batches()]
    stats = rw.collect(model, data, joint=True)
    small = rw.factorise(model, rw.choose(model, stats, keep={"params": 0.6}), stats)
    rw.save(small, tmp_path / "out")
    fresh = network(FITTING[name]).to(dtype)
    loaded = rw.load(fresh, tmp_path / "out", example=data[0])
    assert torch.equal(loaded(data[0]), small(data[0]))
    assert any(getattr(module, "role", None) is Role.FEEDER for module in loaded.modules())


def test_statistics_and_plans_are_stored(tmp_path: Path) -> None:
    model, data = network(Gated), batches()
    stats = rw.collect(model, data, joint=True)
    stats.save(tmp_path / "stats.safetensors")
    read = rw.Statistics.load(tmp_path / "stats.safetensors")
    assert read.sites == stats.sites
    plan = rw.choose(model, read, keep={"params": 0.6})
    plan.save(tmp_path / "plan.yaml")
    one, other = (rw.factorise(model, each, read)(data[0]) for each in (plan, rw.Plan.load(tmp_path / "plan.yaml")))
    assert torch.equal(one, other)


def test_other_formats_refuse_it_and_say_which_takes_it() -> None:
    site = rw.find(network(Plain), batches()[0], joint=True)["1.fc1"]
    for name, format in rw.FORMATS.items():
        reason = format.refuses(site)
        assert (reason is None) == (name == "nystrom")
        assert reason is None or "use nystrom" in reason
    alone = rw.find(network(Plain), batches()[0])["1.fc1"]
    assert rw.FORMATS["nystrom"].refuses(alone) is not None


def test_training_a_narrower_network() -> None:
    model, data = network(Gated).train(), batches()
    stats = rw.collect(model, data, joint=True)
    small = rw.factorise(model, rw.choose(model, stats, keep={"params": 0.6}), stats)
    small(data[0]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    small = small.half().float()
    assert small[1].down[0].places.dtype == torch.int32
