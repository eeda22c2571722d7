"""Sequential factorisation: same factors from both engines, known answers, and networks of every pattern."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.factorisation_nets import CASES, Branching, Chain, Grouped
from support.nets import Residual, batches_of, chains, make, outputs, plan_of, unchanged
from torch import Tensor, nn

import rankwise as rw
from rankwise.inputs.torchvision_shim import import_torchvision


def tensors_of(value: Any) -> list[Tensor]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
    return list(values)


def run(model: nn.Module, batch: Any) -> list[Tensor]:
    with torch.no_grad():
        if isinstance(batch, dict):
            return tensors_of(model(**batch))
        return tensors_of(model(*batch) if isinstance(batch, tuple) else model(batch))


def assert_same_factors(a: nn.Module, b: nn.Module) -> None:
    state = b.state_dict()
    assert a.state_dict().keys() == state.keys()
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_both_engines_give_the_same_factors(case: str, caplog: pytest.LogCaptureFixture) -> None:
    build, data = CASES[case]
    model, batches = make(build), data()
    stats = rw.collect(model, batches)
    plan = rw.choose(model, stats, keep={"params": 0.55}, include="re:.*")
    assert len(plan.factorised) >= 2
    with unchanged(model):
        graph = rw.factorise(model, plan, stats, data=batches, engine="graph")
        hooks = rw.factorise(model, plan, stats, data=batches, engine="hooks")
    assert_same_factors(graph, hooks)
    with caplog.at_level(logging.WARNING):
        auto = rw.factorise(model, plan, stats, data=batches)
    assert not caplog.records
    assert_same_factors(graph, auto)
    assert set(chains(graph)) == {row.site for row in plan.factorised}
    for dense, small in zip(run(model, batches[0]), run(graph, batches[0]), strict=True):
        assert small.shape == dense.shape
        assert 0 < float((small - dense).norm()) < 0.9 * float(dense.norm())


def test_values_that_steer_the_network(caplog: pytest.LogCaptureFixture) -> None:
    model, batches = make(Branching), batches_of(64, 16)
    stats = rw.collect(model, batches)
    plan = plan_of(stats.sites, dict.fromkeys(("first", "second", "third"), ("svd", (3,))))
    with unchanged(model), pytest.raises(ValueError, match=r"cannot be traced.*engine='hooks'"):
        rw.factorise(model, plan, data=batches, engine="graph")
    with caplog.at_level(logging.WARNING, logger="rankwise"):
        auto = rw.factorise(model, plan, data=batches)
    assert "cannot be traced" in caplog.text
    assert_same_factors(auto, rw.factorise(model, plan, data=batches, engine="hooks"))


@pytest.mark.parametrize("rows", [{}, {"net.0": ("svd", (3,))}])
def test_an_unknown_engine(rows: dict[str, Any]) -> None:
    model, batches = make(Chain), batches_of(8, 20)
    plan = plan_of(rw.find(model, batches[0]), rows)
    with pytest.raises(ValueError, match="unknown engine 'magic'"):
        rw.factorise(model, plan, data=batches, engine="magic")


# Known answers ------------------------------------------------------------------------------------------------------


def reduced_rank_regression(x: Tensor, y: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The rank-limited affine map with the least squared error, by explicit least squares and SVD."""
    x, y = x.double(), y.double()
    x_c, y_c = x - x.mean(0), y - y.mean(0)
    solved = torch.linalg.lstsq(x_c, y_c, driver="gelsd").solution
    _, _, V_h = torch.linalg.svd(x_c @ solved, full_matrices=False)
    weight = solved @ V_h[:rank].mT @ V_h[:rank]
    return weight, y.mean(0) - x.mean(0) @ weight


@pytest.mark.parametrize("engine", ["graph", "hooks"])
def test_a_linear_network_is_reduced_rank_regression_at_every_site(engine: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 14), nn.Linear(14, 10)).eval()
    mixing = torch.randn(12, 12) * torch.logspace(0, -1, 12)
    batches = [x @ mixing + 1 for x in batches_of(1000, 12, count=5)]
    ranks = {"0": 3, "1": 6, "2": 4}
    plan = plan_of(rw.find(model, batches[0][:1]), {name: ("svd", (rank,)) for name, rank in ranks.items()})
    small = rw.factorise(model, plan, data=batches, positions="all", engine=engine)
    dense_x = compressed_x = torch.cat(batches)
    with torch.no_grad():
        for name, rank in ranks.items():
            y = model.get_submodule(name)(dense_x)
            weight, bias = reduced_rank_regression(compressed_x, y, rank)
            best = compressed_x.double() @ weight + bias
            found = small.get_submodule(name)(compressed_x)
            assert (best - y).square().sum() <= (found - y).square().sum() * (1 + 1e-6)
            assert (found - y).square().sum() <= 1.005 * (best - y).square().sum()
            dense_x, compressed_x = y, found


def test_sequential_beats_one_shot_on_a_deep_network() -> None:
    ratios = []
    for seed in range(3):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(16, 48), nn.ReLU()]
        for _ in range(6):
            layers += [nn.Linear(48, 48), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(48, 10)).eval()
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        data, fresh = batches_of(512, 16, count=4, seed=seed), batches_of(512, 16, seed=seed + 100)
        stats = rw.collect(model, data)
        plan = rw.choose(model, stats, keep={"macs": 0.5})
        expected = outputs(model, fresh)
        errors = [
            (outputs(rw.factorise(model, plan, stats, **options), fresh) - expected).square().mean()
            for options in ({}, {"data": data})
        ]
        ratios.append(float(errors[1] / errors[0]))
    assert sum(ratios) / 3 < 0.8


def test_mean_outputs_are_the_dense_ones() -> None:
    """In a network without additions every factorised layer meets the mean of the dense one, on compressed inputs."""
    model, batches = make(Grouped), batches_of(16, 3, 10, 10)
    sites = rw.find(model, batches[0][:1])
    plan = plan_of(
        sites,
        {"conv1": ("tucker2", (3, 2)), "conv2": ("svd", (2,)), "conv3": ("spatial_svd", (4,)), "head": ("svd", (2,))},
    )
    small = rw.factorise(model, plan, data=batches, positions="all")
    dense_means, means = (
        site_means(model, list(chains(small)), batches),
        site_means(small, list(chains(small)), batches),
    )
    for name, mean in dense_means.items():
        torch.testing.assert_close(means[name], mean, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "case, sites", [("signals", {"stem", "conv2"}), ("volumes", {"stem", "conv2"}), ("decoder", {"up1", "up2"})]
)
@pytest.mark.parametrize("one_shot", [True, False])
def test_mean_outputs_of_other_convolutions_are_the_dense_ones(case: str, sites: set[str], one_shot: bool) -> None:
    """Of every site on its own: the outputs that the correction leaves differ, their mean does not."""
    build, data = CASES[case]
    model, batches = make(build), data()
    stats = rw.collect(model, batches, positions="all")
    for name in sites:
        plan = plan_of(stats.sites, {name: ("svd", (2,))})
        small = rw.factorise(model, plan, stats, data=None if one_shot else batches, positions="all")
        before, after = site_means(model, [name], batches)[name], site_means(small, [name], batches)[name]
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5, msg=name)


def site_means(model: nn.Module, names: list[str], batches: list[Tensor]) -> dict[str, Tensor]:
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: seen[name].append(y.clone()))
        for name in names
    ]
    outputs(model, batches)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(ys).transpose(0, 1).flatten(1).mean(1) for name, ys in seen.items()}


# Few rows, other data -----------------------------------------------------------------------------------------------


def test_fewer_rows_than_inputs() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 8)))
    batches = batches_of(3, 64, count=2)
    stats = rw.collect(model, batches)
    plan = rw.choose(model, stats, keep={"params": 0.5})
    for engine in ("graph", "hooks"):
        small = rw.factorise(model, plan, stats, data=batches, engine=engine)
        assert all(value.isfinite().all() for value in small.state_dict().values())
        assert outputs(small, batches_of(16, 64, seed=9)).isfinite().all()


def test_one_sample() -> None:
    model = make(Residual)
    plan = plan_of(rw.find(model, torch.zeros(1, 3, 8, 8)), {"block1.conv1": ("svd", (4,)), "head": ("svd", (2,))})
    small = rw.factorise(model, plan, data=batches_of(1, 3, 8, 8, count=1))
    assert outputs(small, batches_of(2, 3, 8, 8)).isfinite().all()


def test_a_shuffling_loader_gives_the_same_quality() -> None:
    """Passes over the data come in another order each; inputs and targets must still belong together."""
    model = make(Residual)
    images = batches_of(128, 3, 8, 8, count=1)[0]
    plan = rw.choose(model, rw.collect(model, [images]), keep={"macs": 0.7})
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images),
        batch_size=16,
        shuffle=True,
        collate_fn=lambda b: torch.stack([x for (x,) in b]),
    )
    expected = outputs(model, [images])
    error = (outputs(rw.factorise(model, plan, data=list(images.split(16))), [images]) - expected).norm()
    for engine in ("graph", "hooks"):
        shuffled = (outputs(rw.factorise(model, plan, data=loader, engine=engine), [images]) - expected).norm()
        assert shuffled < 1.3 * error


def test_the_same_twice() -> None:
    model, batches = make(Residual), batches_of(8, 3, 8, 8)
    plan = rw.choose(model, rw.collect(model, batches), keep={"macs": 0.6})
    first, second = (rw.factorise(model, plan, data=batches, positions=5, seed=3) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    other = rw.factorise(model, plan, data=batches, positions=5, seed=4)
    assert any(
        not torch.equal(a, b) for a, b in zip(first.state_dict().values(), other.state_dict().values(), strict=True)
    )


# Layers that are more than one, or less ----------------------------------------------------------------------------


class Shared(nn.Module):
    """One layer under two names, one called twice, two tied, one never called, one tied to embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.twice = nn.Linear(16, 16)
        self.one = nn.Linear(16, 16)
        self.another_name = self.one
        self.tied_a = nn.Linear(16, 16, bias=False)
        self.tied_b = nn.Linear(16, 16, bias=False)
        self.tied_b.weight = self.tied_a.weight
        self.plain = nn.Linear(16, 16)
        self.never = nn.Linear(16, 16)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens)
        h = h + self.twice(torch.tanh(self.twice(h)))
        h = h + self.another_name(torch.tanh(self.one(h)))
        h = h + self.tied_b(torch.tanh(self.tied_a(h)))
        return self.head(h + self.plain(h))


@pytest.mark.parametrize("engine", [None, "graph", "hooks"])
def test_layers_used_more_than_once(engine: str | None) -> None:
    model = make(Shared)
    batches = [torch.randint(0, 30, (16, 7), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    stats = rw.collect(model, batches)
    plan = plan_of(stats.sites, dict.fromkeys(("twice", "one", "tied_a", "plain"), ("svd", (5,))))
    options: dict[str, Any] = {"data": batches, "engine": engine} if engine else {}
    with unchanged(model):
        small = rw.factorise(model, plan, stats, **options)
    assert small.one is small.another_name
    assert small.tied_a is small.tied_b
    assert set(chains(small)) == {"twice", "one", "tied_a", "plain"}
    assert type(small.never) is nn.Linear
    assert torch.equal(small.never.weight, model.never.weight)
    assert small.head.weight is small.embedding.weight
    assert rw.find(small, batches[0][:1]).total_params == plan_params(plan, model)
    assert (outputs(small, batches) - outputs(model, batches)).norm() < outputs(model, batches).norm()


class Siamese(nn.Module):
    """Two branches through modules with the same weight, each with inputs of its own, and a layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.c(torch.relu(self.a(x) + self.b(y)))


def test_a_tied_layer_is_fitted_on_the_inputs_of_all_its_modules() -> None:
    model = make(Siamese)
    batches = [tuple(part + shift for part, shift in zip(batch.split(12, 1), (0, 5))) for batch in batches_of(64, 24)]  # noqa: B905
    stats = rw.collect(model, batches)
    rows = torch.cat([part for batch in batches for part in batch]).double()
    assert stats["a"].count == len(rows)
    torch.testing.assert_close(stats["a"].mean_GD[0], rows.mean(0), rtol=1e-5, atol=1e-5)
    plan = plan_of(stats.sites, {"a": ("svd", (4,)), "c": ("svd", (8,))})
    graph, hooks = (rw.factorise(model, plan, data=batches, engine=engine) for engine in ("graph", "hooks"))
    assert graph.a is graph.b
    assert_same_factors(graph, hooks)


@pytest.mark.parametrize("network", [Residual, Siamese, Chain])
def test_a_plan_in_the_weight_metric_is_kept_to_the_unit(network: type[nn.Module]) -> None:
    """It counts no new biases, so none are added, and the fit does without them."""
    model = make(network)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.bias = None
    if isinstance(model, Residual):
        batches: Any = batches_of(8, 3, 8, 8)
    else:
        batches = [tuple(b.split(12, 1)) for b in batches_of(64, 24)] if network is Siamese else batches_of(64, 20)
    batches = [tuple(t + 1 for t in b) if isinstance(b, tuple) else b + 1 for b in batches]
    stats = rw.collect(model, batches)
    plan = rw.choose(model, stats.sites, keep={"params": 0.6}, metric="weight")
    assert plan.factorised
    small = rw.factorise(model, plan, stats.sites, data=batches)
    first = batches[0]
    sites = rw.find(small, tuple(t[:1] for t in first) if isinstance(first, tuple) else first[:1])
    assert (sites.total_params, sites.total_macs) == (plan.planned["params"], plan.planned["macs"])
    one_shot = rw.factorise(model, plan, stats.sites)
    dense, seq, shot = (torch.cat([run(net, b)[0] for b in batches]) for net in (model, small, one_shot))
    assert (seq - dense).norm() < (shot - dense).norm()


def test_outputs_that_overflow_name_their_site() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).half()
    with torch.no_grad():
        model[2].weight.fill_(6e4)
    batches = [batch.half() for batch in batches_of(16, 8)]
    plan = plan_of(rw.find(model, batches[0][:1]), {"2": ("svd", (2,))})
    with unchanged(model), pytest.raises(ValueError, match=r"site '2', batch 0: the dense network's output holds NaN"):
        rw.factorise(model, plan, data=batches)


def plan_params(plan: rw.Plan, model: nn.Module) -> int:
    sites = rw.find(model, torch.zeros(1, 7, dtype=torch.long))
    return sites.total_params + sum(row.params - sites[row.site].params for row in plan.rows)


def test_fused_attention_stays_dense() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(12, 16)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.outside = nn.Linear(16, 12)

        def forward(self, x: Tensor) -> Tensor:
            h = self.inside(x)
            return self.outside(self.attention(h, h, h)[0])

    model, batches = make(Net), batches_of(16, 5, 12)
    plan = rw.choose(model, rw.collect(model, batches), keep={"params": 0.9})
    small = rw.factorise(model, plan, data=batches)
    assert plan["attention.out_proj"].format == "dense"
    assert "attention" in plan["attention.out_proj"].why
    assert set(chains(small)) <= {"inside", "outside"}
    assert chains(small)
    assert outputs(small, batches).isfinite().all()


def test_a_parametrised_weight() -> None:
    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    model = make(Chain)
    nn.utils.parametrize.register_parametrization(model.net[2], "weight", Halved())
    nn.utils.parametrizations.weight_norm(model.net[4])
    batches = batches_of(64, 20)
    stats = rw.collect(model, batches)
    plan = plan_of(stats.sites, {"net.2": ("svd", (32,)), "net.4": ("svd", (24,))})
    for options in ({}, {"data": batches}):
        small = rw.factorise(model, plan, stats, **options)
        assert set(chains(small)) == {"net.2", "net.4"}
        torch.testing.assert_close(outputs(small, batches), outputs(model, batches), rtol=1e-4, atol=1e-5)


# Dtypes and layouts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("engine", ["graph", "hooks"])
def test_other_dtypes(dtype: torch.dtype, engine: str) -> None:
    model = make(Residual).to(dtype)
    batches = [x.to(dtype) for x in batches_of(8, 3, 8, 8)]
    stats = rw.collect(model, batches)
    plan = rw.choose(model, stats, keep={"macs": 0.7})
    for small in (
        rw.factorise(model, plan, stats),
        rw.factorise(model, plan, stats, data=batches, engine=engine),
    ):
        assert {p.dtype for p in small.parameters()} == {dtype}
        dense, got = outputs(model, batches).double(), outputs(small, batches).double()
        assert (got - dense).norm() < 0.7 * dense.norm()
        assert chains(small)


def test_memory_formats_stay() -> None:
    model, batches = make(Residual).to(memory_format=torch.channels_last), batches_of(8, 3, 8, 8)
    reference = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    stats = rw.collect(model, batches)
    plan = plan_of(stats.sites, {"block1.conv1": ("svd", (6,)), "block2.conv2": ("tucker2", (6, 5))})
    small = rw.factorise(model, plan, data=batches)
    for name in ("block1.conv1.0", "block2.conv2.1", "stem"):
        weight = small.get_submodule(name).weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
    torch.testing.assert_close(
        outputs(small, batches), outputs(rw.factorise(reference, plan, data=batches), batches), rtol=1e-3, atol=1e-4
    )


def test_weights_that_are_not_contiguous() -> None:
    model, batches = make(Chain), batches_of(64, 20)
    plan = plan_of(rw.find(model, batches[0]), {"net.2": ("svd", (6,)), "net.4": ("svd", (6,))})
    expected = rw.factorise(model, plan, data=batches)
    for layer in (model.net[2], model.net[4]):
        layer.weight = nn.Parameter(layer.weight.detach().mT.contiguous().mT)
        assert not layer.weight.is_contiguous()
    assert_same_factors(rw.factorise(model, plan, data=batches), expected)


def test_frozen_layers_stay_frozen_and_training_flags_too() -> None:
    model, batches = make(Chain), batches_of(64, 20)
    model.net[2].requires_grad_(False)
    model.net[4].train()
    plan = plan_of(rw.find(model, batches[0]), dict.fromkeys(("net.0", "net.2", "net.4"), ("svd", (4,))))
    small = rw.factorise(model, plan, data=batches)
    assert not any(p.requires_grad for p in small.net[2].parameters())
    assert all(p.requires_grad for p in small.net[0].parameters())
    assert all(module.training for module in small.net[4].modules())
    assert not any(module.training for module in (small, *small.net[0].modules(), *small.net[2].modules()))
    small.net[0](batches[0]).sum().backward()
    assert small.net[0][0].weight.grad is not None


# Transformers ------------------------------------------------------------------------------------------------------


def test_gpt2(caplog: pytest.LogCaptureFixture) -> None:
    """Conv1D layers, tied embeddings, keyword batches and an output object."""
    import_torchvision()  # transformers imports it where it is installed
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=2, attn_implementation="eager"
    )
    model = make(lambda: transformers.GPT2LMHeadModel(config))
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(4):
        tokens = torch.randint(0, 50, (8, 12), generator=generator)
        batches.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False})
    with unchanged(model):
        stats = rw.collect(model, batches)
        plan = rw.choose(model, stats, keep={"params": 0.8}, ignore="transformer.wte")
        small = rw.factorise(model, plan, stats, data=batches)
    assert any(stats.sites[name].kind == "conv1d_hf" for name in chains(small))
    assert small.lm_head.weight is small.transformer.wte.weight
    assert (
        rw.find(small, {k: v[:1] if isinstance(v, Tensor) else v for k, v in batches[0].items()}).total_params
        == (plan.planned["params"])
    )
    with torch.no_grad():
        dense, got = model(**batches[0]).logits, small(**batches[0]).logits
    assert (dense - got).norm() < 0.5 * dense.norm()
    assert F.softmax(got, -1).isfinite().all()


def test_options_that_change_between_batches(caplog: pytest.LogCaptureFixture) -> None:
    """A graph is traced for the options of the first batch; it must not be run with those of another."""
    build, data = CASES["keywords"]
    model, batches = make(build), data()
    batches[2] = {**batches[2], "flip": True}
    batches[3] = {"a": batches[3]["a"]}
    plan = plan_of(rw.find(model, batches[0]), dict.fromkeys(("left", "out"), ("svd", (4,))))
    with pytest.raises(ValueError, match="batch 2 has another 'flip' than the first"):
        rw.factorise(model, plan, data=batches, engine="graph")
    with caplog.at_level(logging.WARNING, logger="rankwise"):
        auto = rw.factorise(model, plan, data=batches)
    assert "batch 2 has another 'flip'" in caplog.text
    assert_same_factors(auto, rw.factorise(model, plan, data=batches, engine="hooks"))


@pytest.mark.parametrize("engine", ["graph", "hooks"])
def test_a_batch_that_the_network_rejects(engine: str) -> None:
    model, batches = make(Chain), batches_of(16, 20)
    plan = plan_of(rw.find(model, batches[0]), {"net.2": ("svd", (4,))})
    with unchanged(model), pytest.raises(ValueError, match="Chain rejects batch 4"):
        rw.factorise(model, plan, data=[*batches, torch.zeros(4, 19)], engine=engine)


def test_a_layer_that_is_called_for_each_part_of_a_batch() -> None:
    """One sample is one part; all rows of all parts count, as they do one-shot."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(32, 48), nn.Linear(48, 48), nn.Linear(48, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            return self.last(torch.relu(torch.cat([self.middle(part) for part in x.split(4)])))

    model, batches = make(Parts), batches_of(16, 32)
    stats = rw.collect(model, batches)
    plan = plan_of(stats.sites, {"middle": ("svd", (12,))})
    expected, found = rw.factorise(model, plan, stats), rw.factorise(model, plan, data=batches)
    torch.testing.assert_close(outputs(found, batches), outputs(expected, batches), rtol=1e-4, atol=1e-5)
