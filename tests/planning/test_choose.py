"""From curves and a budget to a plan: budgets met, slack filled, constraints kept, contradictions named."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.nets import Residual, batches_of, lost, make
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from rankwise import FORMATS, Plan, PlanRow, Statistics, choose, collect, factorise, find, profile
from rankwise.evaluate import size
from rankwise.formats import get_format, of_role
from rankwise.formats.svd import SVD
from rankwise.layers.kinds import Role
from rankwise.planning.constraints import Constraints, parse_pin
from rankwise.planning.prices import counts, recount
from rankwise.planning.wishes import Asked, Wishes

Net = tuple[nn.Module, Statistics]
X = torch.zeros(1, 3, 16, 16)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def net() -> Net:
    model = make(Residual)
    return model, collect(model, batches_of(8, 3, 16, 16))


@pytest.fixture(scope="module")
def curves(net: Net) -> Any:
    return {metric: profile(*net, metric=metric) for metric in ("input", "weight")}


def measured(model: nn.Module) -> dict[str, int | None]:
    counted = size(model, X)
    return {"params": counted.params, "macs": counted.macs, "bytes": counted.bytes}


@pytest.mark.parametrize("metric", ["input", "weight"])
@pytest.mark.parametrize("unit", ["params", "macs", "bytes"])
@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.3])
def test_fractions_are_met_and_their_slack_is_filled(
    net: Net, curves: Any, metric: str, unit: str, fraction: float
) -> None:
    model, stats = net
    plan = choose(model, stats, keep={unit: fraction}, metric=metric, curves=curves[metric])
    assert plan.dense == measured(model)
    share = plan.planned[unit] / plan.dense[unit]
    assert fraction - 0.02 < share <= fraction
    assert plan.keep == {unit: fraction}
    assert (plan.metric, plan.rule, plan.fingerprint) == (metric, "knapsack", stats.sites.fingerprint)


@pytest.mark.parametrize("unit", ["params", "macs", "bytes"])
def test_absolute_budgets(net: Net, curves: Any, unit: str) -> None:
    model, stats = net
    dense = counts(model, stats.sites)[unit]
    for amount in (dense // 2, dense // 3, float(dense // 2)):
        planned = choose(model, stats, keep={unit: amount}, curves=curves["input"]).planned[unit]
        assert 0.97 * amount < planned <= amount
    same = choose(model, stats, keep={unit: 0.5}, curves=curves["input"])
    assert replace(same, keep={}) == replace(
        choose(model, stats, keep={unit: dense // 2}, curves=curves["input"]), keep={}
    )


@pytest.mark.parametrize(
    "keep",
    [{"params": 0.4, "macs": 0.5}, {"macs": 0.3, "params": 0.6}, {"params": 0.5, "macs": 0.5, "bytes": 0.45}],
)
def test_several_budgets_are_all_met_and_one_is_filled(net: Net, curves: Any, keep: dict[str, float]) -> None:
    plan = choose(*net, keep=keep, curves=curves["input"])
    shares = {unit: plan.planned[unit] / plan.dense[unit] for unit in keep}
    assert all(shares[unit] <= keep[unit] for unit in keep)
    assert max(shares[unit] / keep[unit] for unit in keep) > 0.98
    assert plan.keep == keep
    for unit in keep:
        alone = choose(*net, keep={unit: keep[unit]}, curves=curves["input"])
        assert lost(alone) <= lost(plan) * 1.001


def test_budgets_that_cannot_be_met_together_say_which() -> None:
    """tucker2 has the fewest parameters, but its first layer runs at the resolution of the input."""
    model = nn.Sequential(nn.Conv2d(64, 64, 3, stride=4, padding=1, bias=False))
    sites = find(model, torch.zeros(1, 64, 32, 32))
    fewest = FORMATS["tucker2"].cost(sites["0"], (1, 1), False)
    assert fewest.macs > FORMATS["svd"].cost(sites["0"], (1,), False).macs
    assert choose(model, sites, keep={"params": fewest.params}, metric="weight").planned["macs"] == fewest.macs
    with pytest.raises(ValueError) as caught:
        choose(model, sites, keep={"params": fewest.params, "macs": fewest.macs - 1}, metric="weight")
    assert f"a budget of {fewest.macs - 1:,} macs" in str(caught.value)
    assert f"cannot be met together with at most {fewest.params:,} params" in str(caught.value)
    assert f"keeps at least {fewest.macs:,} " in str(caught.value)


@pytest.mark.parametrize("metric", ["input", "weight"])
@pytest.mark.parametrize("dtype, keep", [(torch.float32, {"macs": 0.3}), (torch.bfloat16, {"bytes": 0.6})])
def test_planned_counts_are_those_of_the_network(metric: str, dtype: torch.dtype, keep: dict[str, float]) -> None:
    """To the unit, with the biases that the correction adds to layers without one."""
    model = make(Residual).to(dtype)
    stats = collect(model, batches_of(8, 3, 16, 16))
    plan = choose(model, stats, keep=keep, metric=metric)
    small = factorise(model, plan, stats)
    assert plan.planned == measured(small)
    sites = find(small, X.to(dtype))
    assert (sites.total_params, sites.total_macs) == (plan.planned["params"], plan.planned["macs"])
    for row in plan.factorised:
        layer = small.get_submodule(row.site)
        assert sum(parameter.numel() for parameter in layer.parameters()) == row.params
    biased = {name for name in plan if small.get_submodule(name).bias is not None}
    if metric == "input":
        assert {row.site for row in plan.factorised} <= biased
    else:
        assert biased == {name for name in plan if model.get_submodule(name).bias is not None}


class Odd(nn.Module):
    """What makes bytes differ from parameters: a parametrisation, tied layers, two dtypes, what is stored or not."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = parametrizations.spectral_norm(nn.Linear(64, 64))
        self.tied = nn.Linear(64, 64, bias=False)
        self.twin = nn.Linear(64, 64, bias=False)
        self.twin.weight = self.tied.weight
        self.head = nn.Linear(64, 64, dtype=torch.float64)
        self.register_buffer("mask", torch.zeros(10_000), persistent=False)
        self.register_buffer("grid", torch.zeros(7, dtype=torch.int16))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twin(self.tied(self.normed(x)).relu()).double())


def bytes_of_odd() -> tuple[nn.Module, Any]:
    model = make(Odd)
    return model, find(model, torch.zeros(1, 64))


@pytest.mark.parametrize("keep", [{"bytes": 0.7}, {"bytes": 0.45}, {"params": 0.5}, {"macs": 0.8}])
def test_planned_bytes_are_those_that_are_stored(keep: dict[str, float]) -> None:
    model, sites = bytes_of_odd()
    plan = choose(model, sites, keep=keep, metric="weight")
    small = factorise(model, plan, sites)
    assert plan.factorised
    assert plan.dense["bytes"] == size(model).bytes
    assert plan.planned["bytes"] == size(small).bytes
    assert plan.planned["params"] == size(small).params
    assert recount(model, edited(plan), sites) == plan


@pytest.mark.parametrize("only", ["normed", "tied", "head"])
def test_each_site_frees_the_bytes_that_are_its_own(only: str) -> None:
    model, sites = bytes_of_odd()
    plan = choose(model, sites, keep={"bytes": 1.0}, metric="weight", include=[only], pin={only: "svd:8"})
    assert plan.planned["bytes"] == size(factorise(model, plan, sites)).bytes


def test_a_buffer_that_is_not_stored_does_not_count() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    model.register_buffer("mask", torch.zeros(10_000), persistent=False)
    plan = choose(model, find(model, torch.zeros(1, 64)), keep={"bytes": 0.5}, metric="weight")
    assert plan.dense["bytes"] == 4 * (64 * 64 + 64)
    assert plan.planned["bytes"] > 0.45 * plan.dense["bytes"]


def test_numbers_of_other_libraries() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    sites = find(model, torch.zeros(1, 64))

    def plan(number: Any, **options: Any) -> Plan:
        return choose(model, sites, keep={"params": number}, metric="weight", **options)

    assert plan(np.float32(0.5)) == plan(0.5)
    assert plan(np.int64(4000)) == plan(4000)
    assert Plan.from_yaml(plan(np.int64(4000)).to_yaml()) == plan(4000)
    assert plan(0.9, floor={"0": np.int64(9)}, cap={"1": np.float64(0.25)}) == plan(
        0.9, floor={"0": 9}, cap={"1": 0.25}
    )
    assert plan(0.9, pin={"0": ("svd", np.array([3]))}) == plan(0.9, pin={"0": "svd:3"})
    assert plan(0.5, round_to=np.int64(4)) == plan(0.5, round_to=4)


def test_one_name_needs_no_list(net: Net) -> None:
    one = choose(*net, keep={"macs": 0.9}, formats="svd", include="block3.*", ignore="block3.conv1")
    assert one == choose(*net, keep={"macs": 0.9}, formats=["svd"], include=["block3.*"], ignore=["block3.conv1"])
    assert {row.format for row in one.rows} == {"dense", "svd"}


@pytest.fixture(scope="module")
def three() -> Net:
    """Three sites, for what is asked of every format."""
    layers = nn.Conv2d(4, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = make(lambda: nn.Sequential(*layers, nn.Linear(16, 10)))
    return model, collect(model, batches_of(8, 4, 8, 8))


# Four ranks are fitted at many points: seconds, for what three ranks of the other formats show.
@pytest.mark.parametrize(
    "format", [pytest.param(name, marks=[pytest.mark.slow] * (name == "tucker")) for name in of_role(Role.LAYER)]
)
def test_a_budget_of_one_half_is_at_most_one_half_for_every_format(three: Net, format: str) -> None:
    model, stats = three
    plan = choose(model, stats, keep={"params": 0.5}, formats=[format])
    assert plan.planned["params"] <= 0.5 * plan.dense["params"]
    assert {row.format for row in plan.factorised} == {format}


def test_everything_kept_stays_dense(net: Net, curves: Any) -> None:
    for unit in ("params", "macs", "bytes"):
        plan = choose(*net, keep={unit: 1.0}, curves=curves["input"])
        assert plan.factorised == ()
        assert plan.planned == plan.dense
        assert all(row.error == 0 and row.ranks == () for row in plan.rows)


def test_at_or_above_break_even_a_site_stays_dense() -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 2, bias=False))
    sites = find(model, torch.zeros(1, 64))
    assert sites["0"].break_even == 31
    ranks = [o.ranks[0] for o in profile(model, sites, metric="weight")["0"] if o.format == "svd"]
    assert max(ranks) == 31
    assert [o.format for o in profile(model, sites, metric="weight")["1"]] == ["dense", "svd"]
    plan = choose(model, sites, keep={"params": 0.99}, metric="weight")
    for row in plan.rows:
        assert row.params <= sites[row.site].params
        assert row.format != "dense" or row.params == sites[row.site].params


def test_errors_fall_as_the_budget_grows(net: Net, curves: Any) -> None:
    errors = []
    for fraction in (0.2, 0.35, 0.5, 0.7, 0.9, 1.0):
        plan = choose(*net, keep={"macs": fraction}, curves=curves["input"])
        errors.append(lost(plan))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1] == 0


def test_equal_arguments_give_equal_plans(net: Net) -> None:
    first, second = (choose(*net, keep={"macs": 0.4}, formats=["svd", "tucker2"]) for _ in range(2))
    assert first == second


# ---- constraints


@pytest.mark.parametrize(
    "pin, format, ranks",
    [
        ("svd:5", "svd", (5,)),
        ("tucker2:6,4", "tucker2", (6, 4)),
        (("spatial_svd", [7]), "spatial_svd", (7,)),
        ("dense", "dense", ()),
    ],
)
def test_pins(net: Net, curves: Any, pin: Any, format: str, ranks: tuple[int, ...]) -> None:
    plan = choose(*net, keep={"macs": 0.5}, pin={"block1.conv1": pin}, curves=curves["input"])
    row = plan["block1.conv1"]
    assert (row.format, row.ranks, row.why) == (format, ranks, "pinned by 'block1.conv1'")
    assert plan.planned["macs"] <= 0.5 * plan.dense["macs"]
    assert row.error == 0 if format == "dense" else 0 < (row.error or 0) < 1


def test_globs_and_regular_expressions(net: Net, curves: Any) -> None:
    model, stats = net
    plan = choose(model, stats, keep={"macs": 0.9}, ignore=["block1.*", "re:.*downsample.*"], curves=curves["input"])
    for name in ("block1.conv1", "block1.conv2", "block2.downsample.0"):
        assert (plan[name].format, plan[name].why) == ("dense", "ignored")
    plan = choose(model, stats, keep={"macs": 0.9}, include=["block3.*"], curves=curves["input"])
    assert {row.site for row in plan.factorised} <= {"block3.conv1", "block3.conv2"}
    assert plan["stem"].why == "not included"
    pinned = choose(model, stats, keep={"macs": 0.9}, pin={"re:block[12].conv2": "svd:3"}, curves=curves["input"])
    assert [row.site for row in pinned.rows if row.ranks == (3,) and "pinned" in row.why] == [
        "block1.conv2",
        "block2.conv2",
    ]


def test_pins_win_over_what_is_not_included(net: Net, curves: Any) -> None:
    plan = choose(*net, keep={"macs": 0.95}, include=["block3.*"], pin={"stem": "svd:4"}, curves=curves["input"])
    assert plan["stem"].ranks == (4,)


@pytest.mark.parametrize("value", [6, 0.5])
def test_floors(net: Net, curves: Any, value: float) -> None:
    model, stats = net
    plan = choose(model, stats, keep={"macs": 0.6}, floor={"*": value}, curves=curves["input"])
    assert plan.factorised
    for row in plan.factorised:
        limits = FORMATS[row.format].limits(stats.sites[row.site])
        assert all(r >= (value if value > 1 else value * limit) for r, limit in zip(row.ranks, limits, strict=True))


@pytest.mark.parametrize("value", [5, 0.4])
def test_caps(net: Net, curves: Any, value: float) -> None:
    model, stats = net
    plan = choose(model, stats, keep={"macs": 0.9}, cap={"block?.conv?": value}, curves=curves["input"])
    capped = [row for row in plan.rows if re.fullmatch(r"block.\.conv.", row.site)]
    assert len(capped) == 6
    for row in capped:
        limits = FORMATS[row.format].limits(stats.sites[row.site])
        assert all(r <= (value if value > 1 else value * limit) for r, limit in zip(row.ranks, limits, strict=True))


def test_round_to(net: Net) -> None:
    model, stats = net
    plan = choose(model, stats, keep={"macs": 0.4}, round_to=4)
    assert plan.factorised
    for row in plan.factorised:
        limits = FORMATS[row.format].limits(stats.sites[row.site])
        assert all(r % 4 == 0 or r == limit for r, limit in zip(row.ranks, limits, strict=True))


def test_a_site_that_must_stay_dense_says_why() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(72, 30))
    sites = find(model, torch.zeros(1, 8, 5, 5))
    plan = choose(model, sites, keep={"params": 0.5}, metric="weight", floor={"*": 1})
    assert (plan["0"].format, plan["0"].why) == ("dense", sites["0"].dense_because)


# ---- complaints


@pytest.mark.parametrize(
    "options, message",
    [
        ({"keep": None}, "rule 'knapsack' needs a budget, for instance"),
        ({"keep": {}}, "keep needs a budget"),
        ({"keep": 0.5}, "keep needs a budget"),
        ({"rule": "knapsak"}, "unknown rule 'knapsak'; did you mean knapsack.* The rules are"),
        ({"rule": "knapsack:share=1"}, "there is no setting 'share'; it has no settings"),
        ({"rule": 3}, "unknown rule '3'"),
        ({"keep": {"flops": 0.5}}, "unknown budget 'flops'; the budgets are params, macs, bytes, linear, latency"),
        ({"keep": {"latency": 0.5}}, "a latency budget is measured: pass an input as example="),
        ({"keep": {"latency": "8 minutes"}}, "the latency '8 minutes' is not a time such as 8ms"),
        ({"keep": {"macs": 0}}, "above 0, not 0"),
        ({"keep": {"macs": -0.5}}, "above 0, not -0.5"),
        ({"keep": {"macs": True}}, "above 0, not True"),
        ({"keep": {"macs": "half"}}, "above 0, not 'half'"),
        ({"keep": {"macs": float("nan")}}, "above 0, not nan"),
        ({"keep": {"macs": float("inf")}}, "above 0, not inf"),
        ({"keep": {"macs": 1.5}}, "1.5 is neither a fraction up to 1.0 nor a whole number"),
        ({"keep": {"macs": 50.5}}, "50.5 is neither a fraction"),
        ({"keep": {"macs": np.float32("nan")}}, "above 0, not .*nan"),
        ({"formats": ["parafac"]}, "unknown format 'parafac'"),
        ({"metric": "fischer"}, "unknown metric 'fischer'"),
        ({"ignore": ["block9.*"]}, r"'block9.\*' matches no site; near names are: "),
        ({"include": ["steam"]}, "'steam' matches no site; near names are: stem"),
        ({"pin": {"hat": "dense"}}, "'hat' matches no site; near names are: .*head"),
        ({"floor": {"re:(": 1}}, "is not a valid regular expression"),
        ({"pin": {"stem": "svd"}}, "a pin is"),
        ({"pin": {"stem": "svd:two"}}, "a pin is .* not 'svd:two'"),
        ({"pin": {"stem": 16}}, "a pin is .* not 16"),
        ({"pin": {"stem": ("svd", 4)}}, "a pin is"),
        ({"pin": {"stem": ("svd", (4.5,))}}, "a pin is"),
        ({"pin": {"stem": "parafac:4"}}, "unknown format 'parafac'"),
        ({"pin": {"stem": "svd:4,4"}}, r"site 'stem': svd cannot have ranks \(4, 4\)"),
        ({"pin": {"stem": "svd:99"}}, r"site 'stem': svd cannot have ranks \(99,\).* between 1 and \(12,\)"),
        ({"pin": {"head": "tucker2:2,2"}}, "site 'head' cannot be pinned to tucker2"),
        ({"pin": {"block1.*": "svd:4", "*.conv1": "svd:5"}}, "site 'block1.conv1' is pinned twice, by 'block1"),
        ({"pin": {"stem": "svd:4"}, "ignore": ["stem"]}, "site 'stem' is both ignored and pinned by 'stem'"),
        (
            {"floor": {"stem": 8}, "cap": {"stem": 4}},
            "'stem': no option has its ranks at most 4, .*; change the cap",
        ),
        (
            {"floor": {"st*": 8}, "pin": {"stem": "svd:4"}},
            r"'stem': pinned by 'stem' to svd \[4\], .* the floor of 'st\*'",
        ),
        ({"floor": {"stem": 0.5}, "pin": {"*": "svd:4"}}, r"'stem': pinned by '\*' to svd \[4\], .* at least 0.5"),
        ({"cap": {"stem": 4}, "pin": {"stem": "svd:5"}}, r"to svd \[5\], .* at most 4, .* change the cap or the pin"),
        ({"cap": {"stem": 4}, "pin": {"stem": "dense"}}, r"pinned by 'stem' to dense \[\], .* at most 4"),
        ({"cap": {"stem": 0}}, "the cap of 'stem' must be a rank or a fraction"),
        ({"floor": {"stem": True}}, "the floor of 'stem' must be a rank or a fraction"),
        ({"floor": {"stem": "8"}}, "the floor of 'stem' must be a rank or a fraction"),
        ({"round_to": 0}, "round_to must be"),
    ],
)
def test_complaints(net: Net, options: dict[str, Any], message: str) -> None:
    model, stats = net
    with pytest.raises(ValueError, match=message):
        choose(model, stats, **{"keep": {"macs": 0.5}, **options})


def test_pins_within_their_bounds(net: Net, curves: Any) -> None:
    bounds: dict[str, Any] = {"floor": {"*": 2}, "cap": {"block1.*": 6}, "curves": curves["input"]}
    plan = choose(*net, keep={"macs": 0.9}, pin={"block1.conv1": "svd:4", "stem": "dense"}, **bounds)
    assert plan["block1.conv1"].ranks == (4,)
    assert plan["stem"].format == "dense"


def test_given_curves_and_what_they_cannot_follow(net: Net, curves: Any) -> None:
    model, stats = net
    for options, message in (
        ({"formats": ["svd"]}, r"formats=\['svd'\] has no effect on given curves; pass it to profile"),
        ({"round_to": 4}, "round_to=4 has no effect on given curves; pass it to profile"),
        ({"metric": "weight"}, "site 'block1.conv1': its curve counts .* in the 'weight' metric are"),
        (
            {"metric": "fischer"},
            "unknown metric 'fischer'; did you mean fisher",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            choose(model, stats, keep={"macs": 0.5}, curves=curves["input"], **options)


def test_curves_that_lack_a_site(net: Net, curves: Any) -> None:
    model, stats = net
    part = {name: curve for name, curve in curves["input"].items() if name not in ("stem", "head")}
    with pytest.raises(ValueError, match="curves hold nothing for sites 'stem', 'head'; profile this network"):
        choose(model, stats, keep={"macs": 0.5}, curves=part)
    plan = choose(model, stats, keep={"macs": 0.9}, curves=part, ignore=["stem", "head"])
    assert plan["stem"].why == "ignored"


def test_equal_pins_of_two_patterns_do_not_contradict(net: Net, curves: Any) -> None:
    plan = choose(*net, keep={"macs": 0.9}, pin={"stem": "svd:4", "st*": "svd:4"}, curves=curves["input"])
    assert plan["stem"].ranks == (4,)
    plan = choose(*net, keep={"macs": 0.9}, pin={"stem": "svd:4", "st*": ("svd", (4,))}, curves=curves["input"])
    assert plan["stem"].ranks == (4,)


@pytest.mark.parametrize("unit", ["params", "macs", "bytes"])
def test_a_budget_that_cannot_be_met_names_the_least_that_can(net: Net, curves: Any, unit: str) -> None:
    model, stats = net
    with pytest.raises(ValueError, match="cannot be met") as caught:
        choose(model, stats, keep={unit: 0.001}, curves=curves["input"])
    match = re.search(r"keeps at least ([\d,]+) ", str(caught.value))
    assert match is not None
    least = int(match[1].replace(",", ""))
    assert choose(model, stats, keep={unit: least}, curves=curves["input"]).planned[unit] == least
    with pytest.raises(ValueError, match="cannot be met"):
        choose(model, stats, keep={unit: least - 1}, curves=curves["input"])


def test_the_input_metric_needs_statistics(net: Net) -> None:
    model, stats = net
    with pytest.raises(ValueError, match="needs statistics"):
        choose(model, stats.sites, keep={"macs": 0.5})


def test_pins_as_text() -> None:
    assert parse_pin("dense") == ("dense", ())
    assert parse_pin("svd:16") == ("svd", (16,))
    assert parse_pin("tucker2: 8, 12") == ("tucker2", (8, 12))
    assert parse_pin(("tucker2", [8, 12])) == ("tucker2", (8, 12))
    assert parse_pin("slr:k=16,sr=0.5,rr=0.25") == ("slr", {"k": 16.0, "sr": 0.5, "rr": 0.25})
    for wrong in ("svd:", "svd:1.5", "dense:3", ":", "", "slr:k=a,sr=0.5", "slr:k=16,0.5"):
        with pytest.raises(ValueError, match="a pin is"):
            parse_pin(wrong)


def test_pins_of_formats_with_settings() -> None:
    assert parse_pin("stt:slices=4:8,8,4") == ("stt:slices=4", (8, 8, 4))
    assert parse_pin("tt:outputs=8x2,inputs=4x4:3") == parse_pin(("tt:outputs=8x2,inputs=4x4", (3,)))
    assert parse_pin((get_format("stt:slices=4"), (8, 8, 4))) == ("stt:slices=4", (8, 8, 4))
    for wrong in ("stt:slices=4", "tt:outputs=8x2,inputs=4x4"):
        with pytest.raises(
            ValueError, match=f'has .* of the format, and no ranks; add them, for instance "{wrong}:8,8"'
        ):
            parse_pin(wrong)
    with pytest.raises(ValueError, match="a pin is"):
        parse_pin("stt:slices=4:")


def test_formats_with_settings_are_planned_and_refined_under_their_names(net: Net, tmp_path: Path) -> None:
    model, stats = net
    pins = {"block1.conv1": "stt:slices=4:2,4,2"}
    plan = choose(model, stats, keep={"macs": 0.6}, formats=["svd", "stt:slices=2", "stt:slices=4"], pin=pins)
    assert {row.format for row in plan.rows} <= {"dense", "svd", "stt", "stt:slices=4"}
    assert plan["block1.conv1"].format == "stt:slices=4"
    plan.save(tmp_path / "plan.yaml")
    assert Plan.load(tmp_path / "plan.yaml") == plan
    assert recount(model, replace(plan, planned={}), stats.sites).planned["params"] == plan.planned["params"]
    small = factorise(model, Plan.load(tmp_path / "plan.yaml"), stats)
    assert find(small, stats.sites.example).total_params == plan.planned["params"]
    with pytest.raises(ValueError, match="there is no setting 'slice'; its settings are"):
        choose(model, stats, keep={"macs": 0.5}, pin={"block1.conv1": "stt:slice=4:2,2,2"})


# ---- a plan that a person edited


def edited(plan: Plan, **rows: Any) -> Plan:
    changes = {name.replace("__", "."): change for name, change in rows.items()}
    return replace(plan, rows=tuple(replace(row, **changes.get(row.site, {})) for row in plan.rows), planned={})


@pytest.mark.parametrize("metric", ["input", "weight"])
def test_recount_of_an_edited_plan(net: Net, curves: Any, metric: str) -> None:
    model, stats = net
    plan = choose(model, stats, keep={"macs": 0.5}, metric=metric, curves=curves[metric])
    untouched = recount(model, edited(plan), stats.sites)
    assert untouched == plan
    changed = edited(
        plan,
        stem={"format": "dense", "ranks": (), "params": 0, "macs": 0},
        block1__conv1={"format": "svd", "ranks": (2,), "params": 0, "macs": 0},
        block1__conv2={"format": "tucker2", "ranks": (3, 2), "params": 0, "macs": 0},
    )
    counted = recount(model, changed, stats.sites)
    assert counted.planned == measured(factorise(model, counted, stats))
    assert counted["stem"].params == stats.sites["stem"].params


def test_recount_refuses_what_cannot_be_built(net: Net, curves: Any) -> None:
    model, stats = net
    plan = choose(model, stats, keep={"macs": 0.5}, curves=curves["input"])
    for change, message in (
        ({"site": "steam"}, "'steam' matches no site; near names are: stem"),
        ({"format": "parafac", "ranks": (2,)}, "unknown format 'parafac'"),
        ({"format": "svd", "ranks": (2, 2)}, r"site 'stem': svd cannot have ranks \(2, 2\)"),
        ({"format": "svd", "ranks": (1000,)}, r"svd cannot have ranks \(1000,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            recount(model, edited(plan, stem=change), stats.sites)
    with pytest.raises(ValueError, match="site 'head' cannot have format 'tucker2'"):
        recount(model, edited(plan, head={"format": "tucker2", "ranks": (2, 2)}), stats.sites)


@pytest.mark.parametrize("format, ranks", [("svd", (4,)), ("dense", ())])
def test_recount_of_a_row_that_names_no_single_site(format: str, ranks: tuple[int, ...]) -> None:
    model, sites = bytes_of_odd()
    for name, message in (
        ("twin", "plan row 'twin': this is an alias of site 'tied'"),
        ("?e*", r"plan row '\?e\*': this is a pattern, .* 'head'"),
    ):
        plan = Plan(rows=(PlanRow(site=name, format=format, ranks=ranks, params=0, macs=0),), metric="weight")
        with pytest.raises(ValueError, match=message):
            recount(model, plan, sites)


def test_a_format_that_is_not_registered_is_chosen_pinned_and_built(net: Net) -> None:
    model, stats = net

    class Own(SVD):
        name = "own"

    keep = {"params": 0.5}
    usual = choose(model, stats, keep=keep, formats="svd")
    plan = choose(model, stats, keep=keep, formats=[Own()])
    assert [row.ranks for row in plan.rows] == [row.ranks for row in usual.rows]
    assert {row.format for row in plan.factorised} == {"own"}
    small, same = factorise(model, plan, stats, formats=Own()), factorise(model, usual, stats)
    for a, b in zip(small.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    name = plan.factorised[0].site
    pinned = choose(model, stats, keep=keep, formats="tucker2", pin={name: (Own(), [3])})
    assert (pinned[name].format, pinned[name].ranks) == ("own", (3,))
    with pytest.raises(ValueError, match="unknown format 'own'"):
        choose(model, stats, keep=keep, pin={name: "own:3"})
    with pytest.raises(ValueError, match="unknown format 'own'"):
        factorise(model, plan, stats)


def test_wishes_that_do_not_exist_are_told_with_those_that_do(net: Net) -> None:
    wishes: dict[str, Any] = {"format": "svd"}
    with pytest.raises(TypeError, match="no argument 'format'; the arguments are keep, rule, floor_rule, evaluate"):
        choose(*net, **wishes)
    assert {item.name for item in fields(Asked)} - {"constraints"} | {item.name for item in fields(Constraints)} == set(
        Wishes.__annotations__
    )
