"""Sparse low rank as layers: the published form, what is stored and read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.nets import make
from torch import Tensor, nn

import rankwise as rw
from rankwise.formats import FORMATS, LowRank, Ranks
from rankwise.formats.slr import Importance, SparseLowRank
from rankwise.formats.slr_levels import paper_ranks
from rankwise.formats.weights import site_bias, site_weight
from rankwise.importance import by_weight
from rankwise.layers.nested import Bands, Branches
from rankwise.statistics.moments import identity_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def dense(inputs: int = 30, outputs: int = 40) -> nn.Sequential:
    return make(lambda: nn.Sequential(nn.Linear(inputs, outputs))).double()


def site_of(model: nn.Module, inputs: int = 30) -> rw.Site:
    return rw.find(model, torch.zeros(1, inputs, dtype=torch.float64))["0"]


def chain_of(format: SparseLowRank, model: nn.Sequential, ranks: Ranks) -> LowRank:
    site = site_of(model, model[0].in_features)
    metrics = identity_metrics(1, site.in_features)
    factors = format.fit(site, site_weight(model, site), metrics, ranks)
    chain = format.build(model[0], ranks, bias=True)
    format.fill(chain, factors, site_bias(model, site))
    return chain


def x_of(columns: int, rows: int = 5) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


@pytest.mark.parametrize("k, sr, rr", [(12, 0.5, 0.5), (12, 0.3, 0.75), (4, 0.9, 0.25), (5, 0.5, 0.0)])
def test_it_is_the_published_form(k: int, sr: float, rr: float) -> None:
    """The factors of the truncated SVD, the components of unimportant neurons beyond the reduced rank set to zero."""
    model = dense()
    weight = site_weight(model, site_of(model))
    scores = by_weight(model, site_of(model))
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    U, S, Vh = U[:, :k].clone(), S[:k], Vh[:k].clone()
    U[weight.abs().sum(1).argsort()[: int(40 * sr)], int(k * rr) :] = 0
    Vh[int(k * rr) :, weight.abs().sum(0).argsort()[: int(30 * sr)]] = 0
    ranks = paper_ranks(k, sr, rr, 30, 40)
    chain = chain_of(SparseLowRank({"0": scores}, refit=False), model, ranks)
    torch.testing.assert_close(chain.weight, U @ torch.diag(S) @ Vh, atol=1e-9, rtol=0)
    x = x_of(30)
    torch.testing.assert_close(chain(x), x @ (U @ torch.diag(S) @ Vh).mT + model[0].bias, atol=1e-6, rtol=0)


@pytest.mark.parametrize("k, sr, rr", [(20, 0.9, 0.25), (20, 0.5, 0.0), (12, 0.9, 0.5), (2, 0.99, 0.0), (20, 0.0, 1.0)])
@pytest.mark.parametrize("refit", [True, False])
def test_more_further_components_than_the_block_holds(k: int, sr: float, rr: float, refit: bool) -> None:
    model = dense(64, 20)
    site, weight = site_of(model, 64), site_weight(model, site_of(model, 64))
    ranks = paper_ranks(k, sr, rr, 64, 20)
    chain = chain_of(SparseLowRank({"0": by_weight(model, site)}, refit=refit), model, ranks)
    rank, block = int(k * rr), min(k - int(k * rr), 64 - int(64 * sr), 20 - int(20 * sr))
    numbers = rank * 84 + block * (64 + 20 - int(64 * sr) - int(20 * sr))
    cost = FORMATS["slr"].cost(site, ranks, bias=True)
    assert numbers + 20 == sum(p.numel() for p in chain.parameters()) == cost.params
    assert numbers == cost.macs
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    U, V = U[:, :k] * S[:k], Vh[:k].clone()
    U[weight.abs().sum(1).argsort()[: int(20 * sr)], rank:] = 0
    V[rank:, weight.abs().sum(0).argsort()[: int(64 * sr)]] = 0
    if refit:
        assert torch.dist(chain.weight, weight) <= torch.dist(U @ V, weight) + 1e-9
    else:
        torch.testing.assert_close(chain.weight, U @ V, atol=1e-9, rtol=0)


def test_a_pin_of_more_components_than_the_layer_has() -> None:
    model = dense().float()
    with pytest.raises(ValueError, match="site '0': k=31 is above 30, the full rank of the layer"):
        rw.choose(
            model,
            rw.find(model, torch.zeros(1, 30)),
            keep={"params": 1.0},
            metric="weight",
            pin={"0": "slr:k=31,sr=0.5,rr=0.5"},
        )


@pytest.mark.parametrize("sr, rr", [(0.5, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("refit", [True, False])
def test_it_is_the_svd_where_nothing_is_reduced(sr: float, rr: float, refit: bool) -> None:
    model = dense()
    site, weight = site_of(model), site_weight(model, site_of(model))
    wanted = FORMATS["svd"].fit(site, weight, identity_metrics(1, 30), (8,)).dense()
    chain = chain_of(SparseLowRank(refit=refit), model, paper_ranks(8, sr, rr, 30, 40))
    torch.testing.assert_close(chain.weight, wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "inputs, outputs, k, sr, rr, ratio",
    [
        (25088, 4096, 64, 0.0, 1.0, 55.02),
        (25088, 4096, 64, 0.5, 0.5, 73.35),
        (25088, 4096, 64, 0.7, 0.5, 84.64),
        (25088, 4096, 64, 0.9, 0.25, 169.26),
        (512, 512, 16, 0.5, 0.5, 21.31),
        (512, 512, 16, 0.9, 0.25, 48.91),
    ],
)
def test_published_compression_ratios(inputs: int, outputs: int, k: int, sr: float, rr: float, ratio: float) -> None:
    """They count k singular values beside the factors."""
    site = rw.Site(name="fc", kind="linear", weight_shape=(outputs, inputs), has_bias=False)
    params = FORMATS["slr"].cost(site, paper_ranks(k, sr, rr, inputs, outputs), bias=False).params
    assert inputs * outputs / (params + k) == pytest.approx(ratio, abs=0.03)


def test_a_pin_in_the_parameters_of_the_paper() -> None:
    model = dense().float()
    sites = rw.find(model, torch.zeros(1, 30))
    plan = rw.choose(model, sites, keep={"params": 1.0}, metric="weight", pin={"0": "slr:k=12,sr=0.5,rr=0.5"})
    assert (plan["0"].format, plan["0"].ranks) == ("slr", (6, 6, 15, 20))


@pytest.mark.parametrize("pin", ["slr:k=12,sr=0.5", "slr:k=1.5,sr=0.5,rr=0.5", "slr3:k=8,sr=0.5,rr=0.5", "svd:k=12"])
def test_parameters_that_a_format_has_not(pin: str) -> None:
    model = dense().float()
    with pytest.raises(ValueError, match=rf"site '0': {pin.split(':')[0]} has no"):
        rw.choose(model, rw.find(model, torch.zeros(1, 30)), keep={"params": 1.0}, metric="weight", pin={"0": pin})


@pytest.mark.parametrize("sr, rr", [(1.0, 0.5), (-0.1, 0.5), (0.5, 1.5)])
def test_shares_that_are_none(sr: float, rr: float) -> None:
    with pytest.raises(ValueError, match=f"not k=4, sr={sr} and rr={rr}"):
        paper_ranks(4, sr, rr, 8, 8)


def test_without_a_first_rank_unimportant_neurons_are_cut_off() -> None:
    model = dense()
    scores = Importance(torch.arange(30.0)[None], torch.arange(40.0)[None])
    chain = chain_of(SparseLowRank({"0": scores}), model, (0, 6, 12, 9))
    x = x_of(30)
    other = x.clone()
    other[:, :18] = 7.0
    assert torch.equal(chain(x), chain(other))
    torch.testing.assert_close(chain(x)[:, :31], model[0].bias[:31].expand(5, 31))
    assert bool((chain(x)[:, 31:] != model[0].bias[31:]).all())


def test_the_selection_is_exact_by_count_where_inputs_are_dead() -> None:
    model = dense()
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    format = SparseLowRank({"0": by_weight(model, site_of(model))}, refit=False)
    chain: Any = chain_of(format, model, paper_ranks(6, 0.3, 0.5, 30, 40))
    assert chain[0].inputs.numel() == 21
    assert set(range(1, 30, 2)) <= set(chain[0].inputs.tolist())


@pytest.mark.parametrize("ranks, gathers", [((3, 2, 10, 12), 2), ((3, 2, 30, 12), 1), ((3, 2, 10, 40), 1)])
def test_one_gather_of_inputs_and_one_of_outputs(ranks: Ranks, gathers: int) -> None:
    model = dense().float()
    chain = FORMATS["slr"].build(model[0], ranks, bias=True).eval()
    program = torch.export.export(chain, (torch.zeros(4, 30),))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("index" in name or "gather" in name for name in names) == gathers
    assert sum("linear" in name for name in names) == len(chain[0].levels) + len(chain[1].bands)  # type: ignore


@pytest.mark.parametrize(
    "name, ranks", [("slr", (4, 6, 15, 20)), ("slr", (0, 6, 15, 20)), ("slr3", (2, 3, 15, 20, 2, 8, 9))]
)
def test_saved_without_zeros_and_loaded(name: str, ranks: Ranks, tmp_path: Path) -> None:
    model = make(lambda: nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 5)))
    sites = rw.find(model, torch.zeros(1, 30))
    plan = rw.choose(model, sites, keep={"params": 1.0}, metric="weight", pin={"0": (name, ranks)}, ignore=["2"])
    small = rw.factorise(model, plan, sites)
    assert plan.planned["bytes"] == rw.evaluate.size(small, torch.zeros(1, 30)).bytes
    rw.save(small, tmp_path / "out")
    loaded = rw.load(
        make(lambda: nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 5)), seed=5), tmp_path / "out"
    )
    x = x_of(30).float()
    assert torch.equal(loaded(x), small(x))


@pytest.mark.parametrize(
    "ranks",
    [(0, 0, 5, 5), (2, 3, 0, 5), (2, 3, 5, 0), (31, 1, 5, 5)],
    ids=["no rank", "no input", "no output", "above the limit"],
)
def test_ranks_that_are_not_legal(ranks: Ranks) -> None:
    model = dense()
    with pytest.raises(ValueError, match=r"site '0': slr cannot have ranks .* numbers up to \(30, 30, 30, 40\)"):
        FORMATS["slr"].check(site_of(model), ranks)


def test_blocks_of_a_staircase_lie_inside_each_other() -> None:
    site, format = site_of(dense()), FORMATS["slr3"]
    assert format.check(site, (2, 2, 9, 9, 2, 9, 5)) == (2, 2, 9, 9, 2, 9, 5)
    for ranks in ((2, 2, 9, 9, 2, 10, 5), (2, 2, 9, 9, 2, 5, 10)):
        with pytest.raises(ValueError, match="none more than before"):
            format.check(site, ranks)


def test_the_mlp_of_a_transformer() -> None:
    """Both linear layers of a gated MLP and of a plain one, on three-dimensional inputs, sequentially."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(24)
            self.gate, self.up = nn.Linear(24, 48, bias=False), nn.Linear(24, 48, bias=False)
            self.down = nn.Linear(48, 24, bias=False)
            self.plain = nn.Sequential(nn.Linear(24, 64), nn.GELU(), nn.Linear(64, 24))

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(x)
            x = x + self.down(torch.nn.functional.silu(self.gate(h)) * self.up(h))
            return x + self.plain(x)

    model = make(Block)
    generator = torch.Generator().manual_seed(4)
    scales = torch.linspace(0.01, 2, 24)  # some features of the stream hardly move
    batches = [torch.randn(4, 10, 24, generator=generator) * scales for _ in range(6)]
    names = {"gate": 24, "up": 24, "down": 48, "plain.0": 24, "plain.2": 64}
    pins = {name: ("slr", (6, 6, count // 2, count // 2 if name != "plain.2" else 12)) for name, count in names.items()}
    stats = rw.collect(model, batches)
    plan = rw.choose(model, stats, keep={"params": 1.0}, pin=pins)
    small = rw.factorise(model, plan, data=batches)
    assert rw.find(small, batches[0]).total_params == plan.planned["params"]
    x = batches[0]
    with torch.no_grad():
        left = float((small(x) - model(x)).square().mean() / (model(x) - x).var())
    assert left < 0.5
    exported = torch.export.export(small, (x,)).module()
    torch.testing.assert_close(exported(x), small(x))


def test_embeddings_are_refused() -> None:
    site = rw.find(nn.Sequential(nn.Embedding(20, 8)), torch.zeros(2, 3, dtype=torch.long))["0"]
    assert "use svd" in str(FORMATS["slr"].refuses(site))


def test_it_is_chosen_where_inputs_never_change() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 10)))
    batches = [torch.randn(64, 40, generator=torch.Generator().manual_seed(n)) for n in range(8)]
    for batch in batches:
        batch[:, 10:] = 1.5
    stats = rw.collect(model, batches)
    options = {"keep": {"params": 0.6}, "ignore": ["2"]}
    both, svd = (rw.choose(model, stats, formats=formats, **options) for formats in (["svd", "slr"], "svd"))  # type: ignore
    assert both["0"].format == "slr"
    assert both["0"].error < svd["0"].error
    small = rw.factorise(model, both, data=batches)
    assert rw.find(small, batches[0][:1]).total_params == both.planned["params"]
    wanted = model(batches[0])
    error = float((small(batches[0]) - wanted).square().mean() / wanted.var())
    assert error < 0.01


@pytest.mark.parametrize("inputs", [[0, 0, 4, 5], [0, 4, 5, 6], [0, 1, 4, 9]], ids=["twice", "another group", "none"])
def test_indices_of_inputs_that_cannot_be(inputs: list[int]) -> None:
    layers = [nn.Conv2d(4, 2, 1, groups=2), nn.Conv2d(8, 2, 1, groups=2)]
    branches = Branches(layers, [2, 4], 4, 2, 2)
    assert branches.inputs is not None
    assert branches.inputs.tolist() == [0, 1, 4, 5]
    state = branches.state_dict()
    state["inputs"] = torch.tensor(inputs, dtype=torch.int32)
    with pytest.raises(ValueError, match="'inputs' does not name different channels"):
        branches.load_state_dict(state)


def test_an_order_of_outputs_that_is_none() -> None:
    bands = Bands([nn.Linear(3, 2, bias=False), nn.Linear(1, 2, bias=False)], [3, 1], 4, [2, 2], 1, 0, bias=True)
    state = bands.state_dict()
    state["order"] = torch.tensor([0, 1, 2, 2], dtype=torch.int32)
    with pytest.raises(ValueError, match="'order' is not an order of 4 outputs"):
        bands.load_state_dict(state)
