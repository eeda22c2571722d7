"""The laws of a format, for every format on every kind of layer it takes, in every metric."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.grid_layers import LAYERS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rankwise import FORMATS, LowRank, Site, export, find
from rankwise.formats import Factors, Format, Ranks, get_format, of_role
from rankwise.formats.block_term import BlockTerm
from rankwise.formats.both_sides import curve as two_sided_curve
from rankwise.formats.both_sides import fit as two_sided_fit
from rankwise.formats.both_sides import refuses
from rankwise.formats.building import CHANNELS_LAST
from rankwise.formats.multilinear import QUICK, Multilinear
from rankwise.formats.shape import Shape
from rankwise.formats.slr import SparseLowRank
from rankwise.formats.spatial_svd import SpatialSVD
from rankwise.formats.tensor_train import TensorTrain
from rankwise.formats.tucker2 import Tucker2
from rankwise.formats.weights import site_bias, site_weight, write
from rankwise.layers.kinds import Role, output_first
from rankwise.linalg.metric import Metric
from rankwise.linalg.two_sided import TwoSided
from rankwise.statistics.accumulator import Accumulator
from rankwise.statistics.moments import Moments, identity_metrics
from rankwise.statistics.output_gradients import Gradients
from rankwise.statistics.rows import input_rows

Made = tuple[Any, Site, Tensor]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]


METRICS = ("weight", "many rows", "few rows")


@cache
def _made(name: str, dtype: torch.dtype) -> Made:
    build, shape = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        layer, x = build().to(dtype), torch.randn(shape, dtype=torch.float64).to(dtype)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.5)
    return layer.requires_grad_(True), find(nn.Sequential(layer), x)["0"], x


def made(name: str, dtype: torch.dtype = torch.float64) -> Made:
    """The layer of that name, its site, and an input."""
    layer, site, x = _made(name, dtype)
    return copy.deepcopy(layer), site, x


def is_closed(format: Format) -> bool:
    """Whether ranks have a closed form of their own; the others share an engine, or another's form."""
    return type(format).__base__ is Format and not isinstance(format, (Multilinear, SparseLowRank))


def is_ring(format: Format) -> bool:
    return isinstance(format, TensorTrain) and format.closed


def is_tree(format: Format, site: Site) -> bool:
    """Whether bonds join two factors each and close no ring: one factor after the other can be split off."""
    if not isinstance(format, Multilinear):
        return True
    network = format.network(Shape.of_site(site), format.limits(site))
    modes = set(network.outputs + network.channels + network.spatial)
    joined = [tuple(letter in factor for factor in network.factors) for letter in {*"".join(network.factors)} - modes]
    return all(sum(bond) == 2 for bond in joined) and len(set(joined)) < len(network.factors)


# Formats with settings, each with the layers of the quick tests; the others that it takes are for the slow ones.
SETTINGS: dict[str, set[str]] = {
    "tt:outputs=2x3,inputs=4x2": {"1 x 1", "5 x 3, all uneven"},
    "tt:outputs=7x1x1x1,inputs=1x5x1x2": {"linear"},
    "tr:outputs=2x3,inputs=4x2": set(),
    "tr:outputs=1x7x1,inputs=5x1x2": {"linear"},
    "stt:slices=4": {"5 x 3, all uneven", "1 x 1, stride 2, padding 1"},
    "stt:slices=5": {"linear"},
    "stt:cores=all": {"linear", "transposed, groups 2, all uneven"},
    "stt:slices=4,cores=all,inputs=2x4": {"5 x 3, all uneven"},
    "stt:slices=3": {"transformers' Conv1D"},
    "stt:slices=3,outputs=3x2": {"3 x 3"},
    "str:slices=4": {"1 x 1"},
    "str:cores=all,inputs=4x2": {"stride (2, 1)"},
    "ht:tree=tc/q": {"5 x 3, all uneven"},
    "ht:tree=tc/hw": {"transposed, groups 2, all uneven"},
    "ht:tree=wtc/h": {"groups 4, all uneven"},
    "ht:outputs=1x7x1x1,inputs=1x1x2x5": {"linear"},
    "ht:tree=14/23,outputs=2x1x3x1,inputs=1x4x1x2": {"1 x 1"},
    "btd:inputs=2x5": {"linear"},
    "kronecker:outputs=3x2,inputs=2x4": {"5 x 3, all uneven", "1 x 1"},
    "kronecker:kernel=3x1": {"dilation 2", "groups 2"},
    "kronecker:kernel=1x1": {"5 x 3, all uneven"},
    "kronecker:kernel=2x2": {"transposed"},
    "kronecker:kernel=4x1": {"same, even kernel"},
    "kronecker:kernel=3x2": {"transposed, groups 2, all uneven"},
    "kronecker:kernel=3x1x1": {"3-D, groups 2, all uneven"},
}
SINGLE = of_role(Role.LAYER)
FORMS = [*SINGLE.values(), *map(get_format, SETTINGS)]
GRID = [(format, name) for name in LAYERS for format in FORMS if format.refuses(_made(name, torch.float64)[1]) is None]
# What has a closed form is tested on every layer; of what shares an engine, the other cells are with the slow tests.
# Transposed and of other dimensions the engine is tested on the hardest layers, each format of it on one of them.
OTHER_KINDS = {name for name in LAYERS if "-D" in name or "transposed" in name}
HARDEST = [name for name in LAYERS if name in OTHER_KINDS and "all uneven" in name]
SELECTED = {"linear", "transformers' Conv1D", "1 x 1, stride 2, padding 1", "5 x 3, all uneven", "groups 4, all uneven"}
ENGINE = [format for format in FORMATS.values() if isinstance(format, Multilinear)]  # without settings


def param(format: Format, name: str, quick: bool) -> Any:
    return pytest.param(format, name, id=f"{format.name}-{name}", marks=[] if quick else pytest.mark.slow)


def in_turn(format: Format, names: Sequence[str]) -> str:
    """One of the layers that a format takes, another one for each format of the engine."""
    taken = [name for name in names if (format, name) in GRID]
    return taken[ENGINE.index(format) % len(taken)] if taken else ""


def is_quick(format: Format, name: str) -> bool:
    if is_closed(format):
        return True
    if format.name in SETTINGS:
        return name in SETTINGS[format.name]
    return name in SELECTED or (format in ENGINE and name == in_turn(format, HARDEST))


each = pytest.mark.parametrize("format, name", [param(*cell, is_quick(*cell)) for cell in GRID])


def is_quick_kind(format: Format, name: str, kind: str) -> bool:
    """Fits of the engine take longest: other metrics than that of many rows are tried on two hard layers only."""
    hard = {"linear", "groups 4, all uneven"}
    return is_quick(format, name) and (format not in ENGINE or kind == "many rows" or name in hard)


each_kind = pytest.mark.parametrize(
    "format, name, kind",
    [
        pytest.param(*cell, kind, id=f"{cell[0].name}-{cell[1]}-{kind}", marks=marks)
        for cell in GRID
        for kind in METRICS
        for marks in ([] if is_quick_kind(*cell, kind) else [pytest.mark.slow],)
    ],
)


def smooth(x: Tensor) -> Tensor:
    """Inputs with a mean, correlated between neighbours and channels: what a network really feeds."""
    x = x + 0.7 * x.roll(1, -1) + 0.5 * x.roll(1, 1 if x.dim() > 2 else -1) + 0.3
    return x.relu() + 0.05 * x


def metrics_of(kind: str, name: str) -> list[Metric]:
    if kind == "weight":
        site = made(name)[1]
        return identity_metrics(site.groups, site.in_features)
    return moments_of(kind, name).metrics()


@cache
def moments_of(kind: str, name: str) -> Moments:
    layer, site, x = made(name)
    accumulator = Accumulator(taps=site.taps)
    generator = torch.Generator().manual_seed(5)
    inputs = [smooth(torch.randn(x.shape, generator=generator, dtype=torch.float64)) for _ in range(4)]
    for batch in inputs:
        rows = input_rows(layer, batch, None)
        few = max(1, site.in_features // 8)
        accumulator.update(rows if kind == "many rows" else rows[:, rows.shape[1] // 3 :][:, ::3][:, :few])
    return accumulator.moments()


def both_sides_of(metric: str, name: str) -> TwoSided:
    """The metric of that name; gradients have a moment that is neither diagonal nor well-conditioned."""
    site = made(name)[1]
    T = site.out_features // site.groups
    generator = torch.Generator().manual_seed(6)
    g = torch.randn(site.groups, 3 * T, T, generator=generator, dtype=torch.float64) * torch.logspace(0, -1, T)
    gradients = Gradients(samples=1000, second_GTT=(g + 0.3 * g.roll(1, 2)).mT @ (g + 0.3 * g.roll(1, 2)))
    return replace(moments_of("many rows", name), gradients=gradients).two_sided(metric)


def factors_in(chain: LowRank) -> list[Any]:
    """The layers of a chain that hold its factors."""
    return [module for module in chain.modules() if "weight" in dict(module.named_parameters(recurse=False))]


def some_ranks(format: Format, site: Site) -> Ranks:
    return tuple(max(1, limit // 2) for limit in format.limits(site))


def chain_of(format: Format, layer: nn.Module, site: Site, factors: Factors) -> LowRank:
    model = nn.Sequential(layer)
    bias = site_bias(model, site)
    chain = format.build(layer, factors.ranks, bias=bias is not None)
    format.fill(chain, factors, bias)
    return chain


def fitted(format: Format, layer: nn.Module, site: Site, ranks: Ranks, metrics: list[Metric] | None = None) -> Factors:
    metrics = metrics or identity_metrics(site.groups, site.in_features)
    return format.fit(site, site_weight(nn.Sequential(layer), site), metrics, ranks)


def quickly(format: Format, layer: nn.Module, site: Site, ranks: Ranks, metrics: list[Metric] | None = None) -> Factors:
    """As `fitted`, by a fit that ends early: enough for what is asked of factors and not of their errors."""
    if not isinstance(format, Multilinear):
        return fitted(format, layer, site, ranks, metrics)
    metrics = metrics or identity_metrics(site.groups, site.in_features)
    return format._fit(site, site_weight(nn.Sequential(layer), site), metrics, ranks, QUICK)


@cache
def halved(format: Format, name: str, kind: str = "weight") -> Factors:
    """The layer of that name at half its ranks; fitted once for all that is asked of it."""
    layer, site, _ = made(name)
    return quickly(format, layer, site, some_ranks(format, site), metrics_of(kind, name))


def with_weight(layer: nn.Module, site: Site, weight: Tensor) -> nn.Module:
    other: Any = copy.deepcopy(layer)
    with torch.no_grad():
        write(other, weight)
    return other


def energy(metrics: list[Metric], weight: Tensor) -> float:
    parts = weight.reshape(len(metrics), -1, metrics[0].dim)
    return sum(float((part @ metric.dense() @ part.mT).trace()) for part, metric in zip(parts, metrics, strict=True))


@each
@pytest.mark.parametrize("kind", METRICS)
def test_full_rank_is_exact(format: Format, name: str, kind: str) -> None:
    layer, site, x = made(name)
    factors = fitted(format, layer, site, format.limits(site), metrics_of(kind, name))
    weight = site_weight(nn.Sequential(layer), site)
    torch.testing.assert_close(factors.dense(), weight, atol=1e-7, rtol=0)
    assert factors.error < 1e-9
    chain = chain_of(format, layer, site, factors)
    torch.testing.assert_close(chain(x), layer(x), atol=1e-6, rtol=1e-6)


@each_kind
def test_reported_error_is_that_of_the_weight(format: Format, name: str, kind: str) -> None:
    layer, site, _ = made(name)
    weight, metrics = site_weight(nn.Sequential(layer), site), metrics_of(kind, name)
    factors = halved(format, name, kind)
    direct = energy(metrics, weight - factors.dense()) / energy(metrics, weight)
    assert factors.error == pytest.approx(direct, rel=1e-6, abs=1e-9)
    assert factors.format == format.name
    assert factors.dense().shape == site.weight_shape


@each_kind
def test_curve(format: Format, name: str, kind: str) -> None:
    """Errors fall with every rank; the fit keeps what the curve predicts; ranks are legal and rounded."""
    layer, site, _ = made(name)
    weight, metrics = site_weight(nn.Sequential(layer), site), metrics_of(kind, name)
    curve = format.curve(site, weight, metrics, 1)
    errors, limits = dict(curve), format.limits(site)
    assert len(errors) == len(curve)
    for ranks, error in curve:
        assert format.check(site, ranks) == ranks
        assert 0 <= error <= 1 + 1e-9
    if isinstance(format, Multilinear):
        check_fitted_curve(format, site, weight, metrics, errors)
        return
    assert errors[limits] < 1e-9
    if isinstance(format, SparseLowRank):
        check_curve_of_blocks(format, site, weight, metrics, errors)
        return
    for ranks, error in curve:
        for axis in range(len(ranks)):
            less = (*ranks[:axis], ranks[axis] - 1, *ranks[axis + 1 :])
            assert error <= errors.get(less, 1.0) + 1e-9
    for ranks, error in curve[1 :: max(1, len(curve) // 3)]:
        achieved = format.fit(site, weight, metrics, ranks).error
        assert achieved <= error + 1e-6
        if format.name == "svd":
            assert achieved == pytest.approx(error, rel=1e-6, abs=1e-9)
    stepped = dict(format.curve(site, weight, metrics, 3))
    assert limits in stepped
    for ranks, error in stepped.items():
        assert all(rank % 3 == 0 or rank == limit for rank, limit in zip(ranks, limits, strict=True))
        assert error == pytest.approx(errors[ranks], rel=1e-9, abs=1e-12)


def check_curve_of_blocks(
    format: SparseLowRank, site: Site, weight: Tensor, metrics: list[Metric], errors: dict[Ranks, float]
) -> None:
    """What holds more has no larger error; the fit keeps it; ranks are rounded as far as their blocks allow."""
    for ranks, error in errors.items():
        less = [e for other, e in errors.items() if all(a <= b for a, b in zip(other, ranks, strict=True))]
        assert error <= min(less) + 1e-12
    reduced = [ranks for ranks in errors if ranks != format.limits(site)]
    for ranks in reduced[:: max(1, len(errors) // 4)]:
        assert format.fit(site, weight, metrics, ranks).error <= errors[ranks] + 1e-6
        assert format.cost(site, ranks, site.has_bias).params < site.params
    for ranks, _ in format.curve(site, weight, metrics, 3):
        blocks = [min(ranks[at + 1] * site.taps, ranks[at + 2]) for at in range(1, len(ranks), 3)]
        mosts = [*format.limits(site)]
        for at, block in zip(range(1, len(ranks), 3), blocks, strict=True):
            mosts[at] = block
        assert ranks == format.limits(site) or all(r % 3 == 0 or r == m for r, m in zip(ranks, mosts, strict=True))
    assert list(dict(format.curve(site, weight, metrics, 1, lambda cost: 0.0))) == [format.limits(site)]


def check_fitted_curve(
    format: Multilinear, site: Site, weight: Tensor, metrics: list[Metric], errors: dict[Ranks, float]
) -> None:
    """Some ranks of each family are fitted quickly, the others lie between."""
    for ladder in format.ladders(Shape.of_site(site), 1):
        useful = [ranks for ranks in ladder if format.saves(site, ranks)]
        assert set(useful) <= errors.keys()
        for ranks in ends(useful):
            assert format.fit(site, weight, metrics, ranks).error <= errors[ranks] * slack(format) + 1e-6
        falling = [errors[ranks] for ranks in useful]
        assert all(after <= before + 1e-12 for before, after in pairwise(falling))
    hopeless = format.curve(site, weight, metrics, 1, lambda cost: 0.0)
    assert not hopeless or max(error for _, error in hopeless) == 0


def ends(ladder: list[Ranks]) -> set[Ranks]:
    """The ranks of a ladder that are fitted whatever its length; others may lie between."""
    return {*ladder[:1], *ladder[-1:]}


def slack(format: Format) -> float:
    """How far a fit may end above what a curve has; of a ring it may be what a smaller ring has, in another minimum."""
    return 1.1 if is_ring(format) else 1.02


def is_quick_side(format: Format, name: str, metric: str) -> bool:
    """Closed forms on hard layers of each kind, the others on a linear layer and some on a convolution."""
    if is_closed(format):
        return name in {"linear", "transformers' Conv1D", "groups 4, all uneven", "transposed, groups 2, all uneven"}
    return name == "linear" or (name == "1 x 3" and metric == "fisher" and format in ENGINE[::3])


each_side = pytest.mark.parametrize(
    "format, name, metric",
    [
        pytest.param(*cell, metric, id=f"{cell[0].name}-{cell[1]}-{metric}", marks=marks)
        for cell in GRID
        for metric in ("diagonal", "fisher")
        for marks in ([] if is_quick_side(*cell, metric) else [pytest.mark.slow],)
    ],
)


@each_side
def test_other_metrics(format: Format, name: str, metric: str) -> None:
    """Exact at full rank, the error that is reported, a curve that fits keep, and a chain that computes it."""
    layer, site, _ = made(name)
    weight, two = site_weight(nn.Sequential(layer), site), both_sides_of(metric, name)
    reason = refuses(format, site, metric)
    if reason is not None:
        assert metric == "fisher"
        assert format.output_factor(site) is None
        assert reason.startswith(f"{format.name} has no factor that alone holds the outputs")
        return
    exact = two_sided_fit(format, site, weight, two, format.limits(site))
    torch.testing.assert_close(exact.dense(), weight, atol=1e-6, rtol=0)
    factors = two_sided_fit(format, site, weight, two, some_ranks(format, site))
    direct = two.energy(weight - factors.dense()) / two.energy(weight)
    assert factors.error == pytest.approx(direct, rel=1e-5, abs=1e-9)
    chain = chain_of(format, layer, site, factors)
    scale = float(weight.abs().max())
    torch.testing.assert_close(format.chain_weight(chain), factors.dense(), atol=1e-9 * scale, rtol=1e-6)
    errors = dict(two_sided_curve(format, site, weight, two, 1))
    assert all(0 <= error <= 1 + 1e-9 for error in errors.values())
    if isinstance(format, Multilinear):
        for ladder in format.ladders(Shape.of_site(site), 1):
            for ranks in ends([ranks for ranks in ladder if ranks in errors]):
                assert two_sided_fit(format, site, weight, two, ranks).error <= errors[ranks] * slack(format) + 1e-6
        return
    for ranks in list(errors)[:: max(1, len(errors) // 2)]:
        assert two_sided_fit(format, site, weight, two, ranks).error <= errors[ranks] + 1e-6


def planted_ranks(format: Format, site: Site) -> Ranks:
    """Of which a weight of that form is well-conditioned: sums of terms, blocks and rings need few of them."""
    if is_tree(format, site):
        return some_ranks(format, site)
    limits = format.limits(site)
    return (min(3, *limits),) if len(limits) == 1 else tuple(min(2, max(1, limit // 3)) for limit in limits)


@torch.no_grad()
def let_neurons_stand_out(chain: Any) -> None:
    """Make the important neurons of every group important: no coefficient near zero, and further ranks larger."""
    generator = torch.Generator().manual_seed(4)
    for parameter in chain.parameters():
        magnitudes = 0.5 + torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.copy_(magnitudes * (torch.randn(parameter.shape, generator=generator).sign()))
    for level, branch in enumerate(chain[0].levels):
        branch.weight.mul_(10**level)


@each
@pytest.mark.parametrize("kind", ["weight", "many rows"])
def test_a_planted_weight_is_recovered(format: Format, name: str, kind: str) -> None:
    layer, site, _ = made(name)
    ranks = planted_ranks(format, site)
    planted = format.build(layer, ranks, bias=site.has_bias)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in planted.parameters():
            nn.init.orthogonal_(parameter) if parameter.dim() > 1 else nn.init.normal_(parameter)
    if isinstance(format, SparseLowRank):
        let_neurons_stand_out(planted)
    weight = format.chain_weight(planted).detach()
    metrics = metrics_of(kind, name)
    factors = format.fit(site, weight, metrics, ranks)
    assert factors.error < 1e-9
    torch.testing.assert_close(factors.dense(), weight, atol=1e-5, rtol=1e-5)
    if min(ranks) > 1:
        assert format.fit(site, weight, metrics, tuple(1 for _ in ranks)).error > 1e-4


DTYPES = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_chain_computes_what_the_dense_weight_computes(format: Format, name: str, dtype: torch.dtype) -> None:
    layer, site, x = made(name, dtype)
    factors = halved(format, name)
    chain = chain_of(format, layer, site, factors)
    expected = with_weight(made(name)[0].double(), site, factors.dense())
    with torch.no_grad():
        for own, bias in zip([layer.bias], [expected.bias], strict=True):
            if own is not None:
                bias.copy_(own)
        found, wanted = chain(x), expected(x.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, atol=DTYPES[dtype] * float(wanted.abs().max()), rtol=0)
    stored = output_first(site.kind, chain.weight, site.groups)
    scale = float(factors.dense().abs().max())
    torch.testing.assert_close(stored.double(), factors.dense(), atol=DTYPES[dtype] * scale, rtol=0)
    assert chain.weight.shape == layer.weight.shape


@each
def test_state_dict_goes_into_a_new_chain(format: Format, name: str) -> None:
    layer, site, x = made(name)
    ranks = some_ranks(format, site)
    chain = chain_of(format, layer, site, quickly(format, layer, site, ranks))
    fresh = format.build(made(name)[0], ranks, bias=site.has_bias)
    assert fresh.state_dict().keys() == chain.state_dict().keys()
    fresh.load_state_dict(chain.state_dict())
    assert torch.equal(fresh(x), chain(x))


@each
def test_cost_is_what_the_chain_counts_to(format: Format, name: str) -> None:
    layer, site, x = made(name)
    least, most = tuple(1 for _ in format.limits(site)), format.limits(site)
    for ranks, bias in ((least, True), (some_ranks(format, site), False), (most, True)):
        chain, cost = format.build(layer, ranks, bias), format.cost(site, ranks, bias)
        assert sum(parameter.numel() for parameter in chain.parameters()) == cost.params
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            chain(x)
        assert counter.get_total_flops() == 2 * cost.macs
        counted = find(nn.Sequential(chain), x)
        assert (counted.total_params, counted.total_macs) == cost


@each
def test_fits_are_deterministic(format: Format, name: str) -> None:
    layer, site, _ = made(name)
    again = quickly(format, layer, site, some_ranks(format, site), metrics_of("many rows", name))
    assert torch.equal(again.dense(), halved(format, name, "many rows").dense())


@each
def test_chain_offers_what_host_code_reads_of_the_layer(format: Format, name: str) -> None:
    layer, site, _ = made(name)
    chain = chain_of(format, layer, site, halved(format, name))
    for attribute in ("in_features", "out_features", "in_channels", "out_channels", "groups", "nx", "nf"):
        if hasattr(layer, attribute):
            assert getattr(chain, attribute) == getattr(layer, attribute)
    assert (chain.format.name, chain.ranks) == (format.name, some_ranks(format, site))
    if layer.bias is None:
        assert chain.bias is None
    else:
        assert chain.bias is not None
        torch.testing.assert_close(chain.bias, layer.bias)
    assert f"format='{format.name}'" in repr(chain)


@each
def test_chain_takes_over_how_the_layer_is_kept(format: Format, name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        layer, site, _ = made(name, dtype)
        layout = CHANNELS_LAST.get(len(site.weight_shape))
        if layout is not None:
            layer.to(memory_format=layout)
        layer.train(False).requires_grad_(False)
        ranks = some_ranks(format, site)
        chain = chain_of(format, layer, site, quickly(format, layer, site, ranks))
        assert not chain.training
        assert not any(parameter.requires_grad for parameter in chain.parameters())
        assert {parameter.dtype for parameter in chain.parameters()} == {dtype}
        if layout is not None:
            assert all(m.weight.is_contiguous(memory_format=layout) for m in factors_in(chain))
        layer.train(True).requires_grad_(True)
        chain = format.build(layer, ranks, bias=True)
        assert chain.training
        assert all(parameter.requires_grad for parameter in chain.parameters())
        layer.weight.requires_grad_(False)
        chain = format.build(layer, ranks, bias=True)
        assert [name for name, p in chain.named_parameters() if p.requires_grad] == [
            name for name, p in chain.named_parameters() if layer.bias is not None and name.endswith("bias")
        ]
        layer.requires_grad_(True)
        device = format.build(copy.deepcopy(layer).to("meta"), ranks, bias=True)
        assert {parameter.device.type for parameter in device.parameters()} == {"meta"}


def test_a_plain_layout_stays_plain() -> None:
    for format, name in GRID:
        layer, site, _ = made(name)
        assert all(p.is_contiguous() for p in format.build(layer, some_ranks(format, site), bias=True).parameters())


@each
def test_gradients_reach_the_computed_weight(format: Format, name: str) -> None:
    layer, site, _ = made(name)
    ranks = some_ranks(format, site)
    if isinstance(format, SparseLowRank):  # further ranks that leave nothing over would leave zeros to the next block
        ranks = tuple(1 if at % 3 == 1 else rank for at, rank in enumerate(ranks))
    chain = chain_of(format, layer, site, quickly(format, layer, site, ranks))
    chain.weight.square().sum().backward()
    for index, module in enumerate(factors_in(chain)):
        assert float(module.weight.grad.abs().max()) > 0, f"factor {index}"


KINDS = {"linear", "transformers' Conv1D", "1 x 1", "3 x 3", "groups 4, all uneven", *HARDEST}


def exports(*others: str) -> pytest.MarkDecorator:
    """All of the grid; what is no kind of its own only with the slow tests, and all but closed forms on few layers."""
    some = {(format, "linear") for format in ENGINE[::3]}
    quick = some | {(format, name) for format, name in GRID if name in (KINDS if is_closed(format) else others)}
    return pytest.mark.parametrize("format, name", [param(*cell, cell in quick) for cell in GRID])


@exports("linear", "groups 4, all uneven")
def test_torch_export(format: Format, name: str) -> None:
    layer, site, x = made(name, torch.float32)
    chain = chain_of(format, layer, site, halved(format, name)).eval()
    program = torch.export.export(chain, (x,))
    torch.testing.assert_close(program.module()(x), chain(x))


@exports("groups 4, all uneven")  # a second for each
def test_onnx(format: Format, name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    layer, site, x = made(name, torch.float32)
    chain = chain_of(format, layer, site, halved(format, name)).eval()
    path = export.onnx(nn.Sequential(chain), x, tmp_path / "chain.onnx")  # compared with onnxruntime there
    assert path.stat().st_size > 0


@pytest.mark.parametrize("format", SINGLE.values(), ids=SINGLE)
def test_torch_compile_without_a_graph_break(format: Format) -> None:
    name = "stride (2, 1)"
    layer, site, x = made(name, torch.float32)
    torch._dynamo.reset()  # it would give up after eight chains
    chain = chain_of(format, layer, site, halved(format, name)).eval()
    compiled = torch.compile(chain, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), chain(x))


def test_formats_with_settings_are_tested_on_layers_that_they_take() -> None:
    assert {(name, layer) for name, layers in SETTINGS.items() for layer in layers} <= {(f.name, n) for f, n in GRID}


@pytest.mark.parametrize("format", FORMS, ids=str)
def test_refuses_layers_that_it_cannot_serve(format: Format) -> None:
    for name in LAYERS:
        _, site, _ = made(name)
        reason = format.refuses(site)
        if reason is not None:
            assert format.name in reason
            other = re.search(r"; use (\w+)", reason)
            assert other is not None
            assert FORMATS[other[1]].refuses(site) is None
    depthwise = find(nn.Sequential(nn.Conv2d(4, 8, 3, groups=4)), torch.zeros(1, 4, 5, 5))["0"]
    assert depthwise.dense_because is not None
    assert format.refuses(depthwise) == depthwise.dense_because


@each
def test_illegal_ranks_are_refused_with_site_ranks_and_limits(format: Format, name: str) -> None:
    layer, site, _ = made(name)
    limits = format.limits(site)
    zero, above = tuple(0 for _ in limits), tuple(limit + 1 for limit in limits)
    for ranks in (zero, above, (), (*limits, 1), tuple(-1 for _ in limits)):
        with pytest.raises(ValueError) as caught:
            fitted(format, layer, site, ranks)
        for part in (repr(site.name), format.name, str(ranks), str(limits)):
            assert part in str(caught.value)
    assert format.check(site, list(limits)) == limits  # type: ignore[arg-type]


# ---- faults that were measured in other libraries


def exact_ranks(format: Format, site: Site) -> Ranks:
    """The least ranks at which a format is exact: one block, a ring that is a train."""
    limits = format.limits(site)
    return (1, *limits[1:]) if is_ring(format) or isinstance(format, BlockTerm) else limits


@pytest.mark.parametrize("format", SINGLE.values(), ids=SINGLE)
def test_no_truncation_asked_reproduces_the_layer_in_single_precision(format: Format) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 48, 3, padding=1)
    x = torch.randn(2, 32, 7, 7)
    site = find(nn.Sequential(conv), x)["0"]
    chain = chain_of(format, conv, site, fitted(format, conv, site, exact_ranks(format, site)))
    with torch.no_grad():
        wanted = conv(x)
        assert float((chain(x) - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert sum(p.numel() for p in chain.parameters()) == format.cost(site, exact_ranks(format, site), True).params


@pytest.mark.parametrize("format", SINGLE.values(), ids=SINGLE)
@pytest.mark.parametrize(
    "options, size, expected",
    [
        ({"stride": (2, 1), "padding": 1}, 20, (10, 20)),
        ({"dilation": 2, "padding": 2}, 16, (16, 16)),
        ({"groups": 4, "padding": 1}, 16, (16, 16)),
    ],
)
def test_output_shapes(format: Format, options: dict[str, Any], size: int, expected: tuple[int, int]) -> None:
    conv = nn.Conv2d(16, 16, 3, **options)
    x = torch.randn(1, 16, size, size)
    site = find(nn.Sequential(conv), x)["0"]
    chain = chain_of(format, conv, site, quickly(format, conv, site, tuple(2 for _ in format.limits(site))))
    assert chain(x).shape == conv(x).shape == (1, 16, *expected)


@pytest.mark.parametrize("name", ["1-D", "3 x 3", "3-D", "transposed"])
def test_one_sample_without_a_batch_passes(name: str) -> None:
    for format in [format for format, other in GRID if other == name]:
        layer, site, x = made(name)
        chain = chain_of(format, layer, site, fitted(format, layer, site, exact_ranks(format, site)))
        torch.testing.assert_close(chain(x[0]), layer(x[0]))


@pytest.mark.parametrize("format", [Tucker2, SpatialSVD])
def test_more_sweeps_end_lower(format: type[Tucker2 | SpatialSVD]) -> None:
    layer, site, _ = made("3 x 3")
    weight, metrics = site_weight(nn.Sequential(layer), site), metrics_of("many rows", "3 x 3")
    ranks = some_ranks(format(), site)
    usual, long = (format(sweeps).fit(site, weight, metrics, ranks).error for sweeps in (None, 10))
    assert long < usual * (1 - 1e-4)
    assert format(0).fit(site, weight, metrics, ranks).error > usual


@pytest.mark.parametrize("format", [Tucker2, SpatialSVD])
@pytest.mark.parametrize("sweeps", [-1, True, 2.5, "ten"])
def test_sweeps_are_a_whole_number(format: Any, sweeps: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"sweeps is {sweeps!r}; give a whole number from 0")):
        format(sweeps)
