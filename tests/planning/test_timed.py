"""Plans for latency on devices of known numbers: budgets, what stays dense, and predictions that are put right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.latency import Latency, Work
from rankwise.latency.roofline import Device, RooflineEngine
from rankwise.plan.plan import PlannedLatency
from rankwise.planning.measured_prices import NOISE, SPEED
from rankwise.planning.prices import recount

DEVICE = Device(name="paper", peak=1e9, bandwidth=1e12, tile=16, overhead=1e-6)
EXAMPLE = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))


class Net(nn.Module):
    """Two convolutions that pay, a thin one that does not, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.thin, self.head = nn.Conv2d(64, 24, 1), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.thin(self.second(self.first(x).relu()).relu()).mean((2, 3)))


class Elsewhere(RooflineEngine):
    """A device on which whole networks save less, or more, than their layers by themselves."""

    def __init__(self, gain: float, device: Device = DEVICE) -> None:
        super().__init__(device)
        self.gain, self.networks = gain, 0

    def times(self, works: Mapping[str, Work], **options: Any) -> dict[str, Latency]:
        times = super().times(works, **options)
        if set(works) == {"dense", "planned"}:
            self.networks += 1
            dense, planned = times["dense"].median, times["planned"].median
            own = dense - self.gain * (dense - planned)
            times["planned"] = Latency(median=own, low=own, high=own)
        return times


@pytest.fixture
def net() -> tuple[nn.Module, rw.Sites]:
    torch.manual_seed(0)
    model = Net().eval()
    return model, rw.find(model, EXAMPLE)


def planned(net: tuple[nn.Module, rw.Sites], keep: Mapping[str, Any], engine: Any = None, **options: Any) -> rw.Plan:
    options = {"metric": "weight", "example": EXAMPLE, "engine": engine or RooflineEngine(DEVICE), **options}
    return rw.choose(*net, keep=keep, **options)


def seconds(model: nn.Module) -> float:
    return RooflineEngine(DEVICE).times({"a": Work(model, ((EXAMPLE,), {}))})["a"].median


def least(net: tuple[nn.Module, rw.Sites]) -> float:
    """The share that a refusal names."""
    with pytest.raises(ValueError, match=r"cannot be met: .* keeps at least [\d,]+ \(0\.\d+\)") as refused:
        planned(net, {"latency": 0.01})
    return float(str(refused.value).rpartition("(")[2].partition(")")[0])


@pytest.mark.parametrize("share", [0.8, 0.5, 0.4])
def test_a_share_of_the_dense_time(net: tuple[nn.Module, rw.Sites], share: float) -> None:
    model, sites = net
    plan = planned(net, {"latency": share})
    assert plan.latency is not None
    assert plan.dense["latency"] == pytest.approx(seconds(model) * 1e6)
    assert plan.planned["latency"] <= share * plan.dense["latency"] + 0.01
    built = seconds(rw.factorise(model, plan, sites))
    assert built == pytest.approx(plan.latency.measured / 1000)
    assert built == pytest.approx(plan.latency.predicted / 1000, rel=1e-6)  # a roofline adds its operators up
    assert plan.keep == {"latency": share}


def test_a_time(net: tuple[nn.Module, rw.Sites]) -> None:
    model, sites = net
    limit = int(0.6e6 * seconds(model))
    plan = planned(net, {"latency": f"{limit}us"})
    assert plan.keep == {"latency": limit}
    assert seconds(rw.factorise(model, plan, sites)) * 1e6 <= limit
    assert plan.rows == planned(net, {"latency": limit / 1e6 / seconds(model)}).rows


def test_ranks_lie_on_the_grid_of_vector_units(net: tuple[nn.Module, rw.Sites]) -> None:
    plan = planned(net, {"latency": 0.5})
    assert plan.factorised
    ranks = [rank for row in plan.factorised for rank in row.ranks]
    assert all(rank % DEVICE.tile == 0 or rank < DEVICE.tile for rank in ranks)
    own = planned(net, {"latency": 0.5}, round_to=24)
    assert any(rank % DEVICE.tile for row in own.factorised for rank in row.ranks if rank > DEVICE.tile)


def test_together_with_other_budgets(net: tuple[nn.Module, rw.Sites]) -> None:
    plan = planned(net, {"latency": 0.7, "params": 0.4})
    assert plan.planned["latency"] <= 0.7 * plan.dense["latency"]
    assert plan.planned["params"] <= 0.4 * plan.dense["params"]
    alone = planned(net, {"latency": 0.7})
    assert alone.planned["params"] > 0.4 * alone.dense["params"]


@pytest.mark.parametrize("rule", ["uniform", "minimax", "sensitivity"])
def test_other_rules(net: tuple[nn.Module, rw.Sites], rule: str) -> None:
    def evaluate(plan: rw.Plan) -> float:
        return sum(row.error or 0.0 for row in plan.rows)

    plan = planned(net, {"latency": 0.6}, rule=rule, evaluate=evaluate)
    assert plan.latency is not None
    assert plan.latency.measured <= 0.6 * plan.latency.dense * (1 + NOISE)


def test_what_is_not_faster_stays_dense(net: tuple[nn.Module, rw.Sites]) -> None:
    """With a millisecond for each operator no chain of two is faster; a budget of parameters alone would factorise."""
    slow = RooflineEngine(Device(name="slow", peak=1e12, bandwidth=1e12, overhead=1e-3))
    plan = planned(net, {"latency": 1.0, "params": 1.0}, slow, rule="knapsack")
    assert not plan.factorised
    assert {row.why for row in plan.rows} == {"no format is faster than dense"}
    with pytest.raises(ValueError, match=r"budget of .* microseconds .0.900 of dense. cannot be met"):
        planned(net, {"latency": 0.9}, slow)
    with pytest.raises(ValueError, match=r"budget of .* params .* cannot be met"):
        planned(net, {"latency": 1.0, "params": 0.5}, slow)


def test_a_pin_may_be_slower(net: tuple[nn.Module, rw.Sites]) -> None:
    plan = planned(net, {"latency": 0.9}, pin={"thin": "svd:16"})
    assert plan["thin"].format == "svd"
    assert plan.planned["latency"] <= 0.9 * plan.dense["latency"]


def test_tied_sites(net: tuple[nn.Module, rw.Sites]) -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)).eval()
    plan = planned((model, rw.find(model, EXAMPLE)), {"latency": 0.7}, tie="*")
    assert plan["0"].ranks == plan["2"].ranks
    assert plan["0"].format == plan["2"].format != "dense"


def test_the_least_that_can_be_had(net: tuple[nn.Module, rw.Sites]) -> None:
    share = least(net) + 0.001
    assert planned(net, {"latency": share}).planned["latency"] <= share * 1e6 * seconds(net[0])


@pytest.mark.parametrize("gain", [0.8, 1.25])
def test_predictions_follow_what_whole_networks_take(net: tuple[nn.Module, rw.Sites], gain: float) -> None:
    engine = Elsewhere(gain)
    plan = planned(net, {"latency": 0.6}, engine)
    assert plan.latency is not None
    assert plan.latency.measured == pytest.approx(plan.latency.predicted, rel=0.05)
    assert plan.latency.measured <= 0.6 * plan.latency.dense * (1 + NOISE)
    assert engine.networks >= 2  # the first one was off
    straight = planned(net, {"latency": 0.6})
    faster = sum(row.macs for row in plan.rows) < sum(row.macs for row in straight.rows)
    assert faster is (gain < 1)


def test_a_refusal_rests_on_the_fastest_network(net: tuple[nn.Module, rw.Sites]) -> None:
    """By its layers the network cannot be as fast as it turns out to be."""
    share = least(net) - 0.02
    with pytest.raises(ValueError, match="cannot be met"):
        planned(net, {"latency": share})
    plan = planned(net, {"latency": share}, Elsewhere(1.1))
    assert plan.latency is not None
    assert plan.latency.measured <= share * plan.latency.dense * (1 + NOISE)


def test_a_refusal_before_fits_rests_on_the_fastest_network_too() -> None:
    """Formats whose curves are fitted are drafted before the plan is made."""
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1)).eval()
    small, options = (model, rw.find(model, EXAMPLE)), {"formats": "btd"}
    with pytest.raises(ValueError, match="cannot be met") as refused:
        planned(small, {"latency": 0.01}, **options)
    share = float(str(refused.value).rpartition("(")[2].partition(")")[0]) - 0.02
    plan = planned(small, {"latency": share}, Elsewhere(1.05), **options)
    assert plan.latency is not None
    assert plan.latency.measured <= share * plan.latency.dense * (1 + NOISE)


def test_the_fastest_within_a_loss_where_networks_save_less_than_layers(net: tuple[nn.Module, rw.Sites]) -> None:
    """The search meets shares that no network reaches, and goes on."""
    options: dict[str, Any] = {"metric": "weight", "example": EXAMPLE, "engine": Elsewhere(0.7)}
    plan = rw.choose(*net, target_drop=100.0, drop=lambda plan: 0.0, minimise="latency", **options)
    assert plan.latency is not None
    assert plan.latency.measured < 0.75 * plan.latency.dense


def test_layers_may_promise_more_than_there_is(net: tuple[nn.Module, rw.Sites]) -> None:
    """Alone the layers take three times what the network takes; what is predicted comes right after one network."""

    class Fused(Elsewhere):
        def times(self, works: Mapping[str, Work], **options: Any) -> dict[str, Latency]:
            times = super().times(works, **options)
            return {name: time * (0.3 if "dense" in works else 1.0) for name, time in times.items()}

    plan = planned(net, {"latency": 1.0, "params": 0.4}, Fused(1.0))
    assert plan.latency is not None
    assert plan.latency.predicted == pytest.approx(plan.latency.measured, rel=0.05)


def test_networks_that_never_come_below_the_budget(net: tuple[nn.Module, rw.Sites]) -> None:
    with pytest.raises(ValueError, match=r"keeps at least|of \d networks that were built the fastest takes"):
        planned(net, {"latency": 0.6}, Elsewhere(0.1))


def test_one_slow_moment_is_no_refusal(net: tuple[nn.Module, rw.Sites]) -> None:
    """The first network is measured while the machine is slow, and nothing faster can be planned."""

    class Unlucky(Elsewhere):
        def times(self, works: Mapping[str, Work], **options: Any) -> dict[str, Latency]:
            self.gain = 0.8 if self.networks == 0 else 1.0
            return super().times(works, **options)

    share, engine = least(net) + 0.005, Unlucky(1.0)
    plan = planned(net, {"latency": share}, engine)
    assert engine.networks >= 2
    assert plan.latency is not None
    assert plan.latency.measured <= share * plan.latency.dense * (1 + NOISE)


def test_figures_are_in_the_plan_and_survive_its_file(net: tuple[nn.Module, rw.Sites], tmp_path: Path) -> None:
    figures = {"engine": "onnxruntime", "device": "cpu", "threads": 1, "dense": 14.2, "predicted": 7.1}
    plan = planned(net, {"latency": 0.6})
    plan.save(tmp_path / "plan.yaml")
    assert rw.Plan.load(tmp_path / "plan.yaml") == plan
    with pytest.raises(ValueError, match="plan latency: the field 'measured' is missing"):
        rw.Plan.from_dict({"rows": [], "latency": figures})
    assert (
        str(PlannedLatency(**figures, measured=7.34))  # type: ignore[arg-type]
        == "predicted 7.1 ms, measured 7.34 ms, dense 14.2 ms, onnxruntime 1 thread"
    )
    told = str(PlannedLatency(**figures, measured=7.34, low=7.2, high=7.5, blind=6.0, corrections=1))  # type: ignore[arg-type]
    assert told == (
        "predicted 7.1 ms (-3.3%) after one correction on this very network, blindly 6 ms (-18.3%), "
        "measured 7.34 ms (7.2 to 7.5), dense 14.2 ms, onnxruntime 1 thread"
    )
    with pytest.raises(ValueError, match="the latency's blind must be a number, not 'x'"):
        PlannedLatency(**figures, measured=7.0, blind="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the latency's engine must be a name, not 3"):
        PlannedLatency(**{**figures, "engine": 3, "measured": 7.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the latency's measured must be a number above 0, not 0"):
        PlannedLatency(**figures, measured=0)  # type: ignore[arg-type]


def test_what_is_not_faster_is_not_called_faster() -> None:
    figures: dict[str, Any] = {"engine": "onnxruntime", "device": "cpu", "threads": 1, "dense": 10.0, "predicted": 9.0}
    near = PlannedLatency(**figures, measured=9.8, low=9.5, high=10.1, blind=9.0)
    assert "predicted 9 ms (-8.2%) without having measured it, measured 9.8 ms (9.5 to 10.1, within noise)" in str(near)
    assert str(PlannedLatency(**figures, measured=10.0)).startswith(
        "dense 10 ms, which the planned network takes too: no speed is claimed"
    )


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_the_blind_prediction_knows_no_network(net: tuple[nn.Module, rw.Sites], gain: float) -> None:
    """Networks save `gain` times what their layers save alone: the blind prediction is off by exactly that."""
    latency = planned(net, {"latency": 0.75}, Elsewhere(gain)).latency
    assert latency is not None
    assert latency.blind is not None
    assert (latency.dense - latency.measured) / (latency.dense - latency.blind) == pytest.approx(gain, rel=1e-6)
    assert latency.corrections >= 1
    assert latency.predicted == pytest.approx(latency.measured, rel=0.05)


def test_an_edited_plan_has_no_latency(net: tuple[nn.Module, rw.Sites]) -> None:
    plan = planned(net, {"latency": 0.6})
    assert recount(net[0], plan, net[1]) == plan
    edited = replace(plan, rows=(rw.PlanRow(site=plan.rows[0].site, params=0, macs=0), *plan.rows[1:]))
    again = recount(net[0], edited, net[1])
    assert again.latency is None
    assert "latency" not in again.planned


def test_the_smallest_within_a_loss_can_be_the_fastest(net: tuple[nn.Module, rw.Sites]) -> None:
    def drop(plan: rw.Plan) -> float:
        return sum(row.error or 0.0 for row in plan.rows)

    options: dict[str, Any] = {"metric": "weight", "example": EXAMPLE, "engine": RooflineEngine(DEVICE)}
    plan = rw.choose(*net, target_drop=0.5, drop=drop, minimise="latency", **options)
    assert drop(plan) <= 0.5
    assert plan.planned["latency"] < 0.9 * plan.dense["latency"]
    assert plan.latency is not None


def test_compress(net: tuple[nn.Module, rw.Sites]) -> None:
    model, _ = net
    batches = [torch.randn(4, 32, 8, 8) for _ in range(4)]
    small, report = rw.compress(model, batches, keep={"latency": 0.6}, engine=RooflineEngine(DEVICE))
    assert seconds(small) <= 0.6 * seconds(model) + 2e-6  # biases that correct means are read too
    assert "latency predicted" in str(report)


def test_a_search_that_is_not_for_time_refuses_minimise_alone(net: tuple[nn.Module, rw.Sites]) -> None:
    with pytest.raises(ValueError, match="minimise='latency' has no effect without target_drop"):
        rw.choose(*net, keep={"macs": 0.5}, metric="weight", minimise="latency")


@pytest.mark.parametrize("share", [0.6, 0.4])
def test_a_budget_of_macs_saves_time_too(net: tuple[nn.Module, rw.Sites], share: float) -> None:
    """Of two plans within the budget, the one with an example takes at most its share of the time."""
    plan = planned(net, {"macs": share})
    assert plan.keep == {"macs": share}
    assert plan.planned["macs"] <= share * plan.dense["macs"]
    assert plan.latency is not None
    assert plan.latency.share <= 1 - SPEED * (1 - share) + NOISE
    assert "latency" not in planned(net, {"macs": share}, example=None).planned


def test_a_budget_of_parameters_is_never_slower(net: tuple[nn.Module, rw.Sites]) -> None:
    plan = planned(net, {"params": 0.5})
    assert plan.latency is not None
    assert plan.latency.share < 1


def test_a_plan_that_is_not_faster_says_so(net: tuple[nn.Module, rw.Sites], caplog: pytest.LogCaptureFixture) -> None:
    slow = RooflineEngine(Device(name="slow", peak=1e12, bandwidth=1e12, overhead=1e-3))
    plan = planned(net, {"macs": 0.5}, slow)
    assert plan.planned["macs"] <= 0.5 * plan.dense["macs"]
    assert plan.latency is not None
    assert plan.latency.share > 1
    assert "this plan is not faster in roofline of slow: it takes" in caplog.text
    assert "no plan with these formats and constraints is faster" in caplog.text


def test_an_engine_at_hand_that_cannot_run_the_network_is_told(
    net: tuple[nn.Module, rw.Sites], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unable(RooflineEngine):
        def hold(self, work: Work) -> None:
            raise ValueError("an operator is unknown")

    engine = Unable(DEVICE)
    with pytest.raises(ValueError, match="an operator is unknown"):  # the user named it
        planned(net, {"macs": 0.5}, engine)
    monkeypatch.setattr("rankwise.planning.wishes.get_engine", lambda *_: engine)
    plan = rw.choose(*net, keep={"macs": 0.5}, metric="weight", example=EXAMPLE, engine="auto")
    assert plan.latency is None
    assert "what time to expect is not known" in caplog.text
    assert "an operator is unknown" in caplog.text


def test_torch_follows_where_the_engine_at_hand_cannot_run_the_network(
    net: tuple[nn.Module, rw.Sites], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unable(RooflineEngine):
        def hold(self, work: Work) -> None:
            raise ValueError("an operator is unknown")

    monkeypatch.setattr("rankwise.planning.wishes.at_hand", lambda model: "onnxruntime")
    engines = {"onnxruntime": Unable(DEVICE), "torch": RooflineEngine(DEVICE)}
    monkeypatch.setattr("rankwise.planning.wishes.get_engine", lambda name, threads: engines[name])
    plan = rw.choose(*net, keep={"macs": 0.5}, metric="weight", example=EXAMPLE, engine="auto")
    assert plan.latency is not None
    assert "times are those of" in caplog.text
    assert "an operator is unknown" in caplog.text


@pytest.mark.parametrize("formats", [["svd"], ["svd", "cp3"], ["cp3", "cp"]])
def test_a_budget_that_only_slower_layers_can_meet_is_planned(
    net: tuple[nn.Module, rw.Sites], caplog: pytest.LogCaptureFixture, formats: list[str]
) -> None:
    """Also where curves are refined before the plan is made."""
    slow = RooflineEngine(Device(name="slow", peak=1e12, bandwidth=1e12, overhead=1e-3))
    plan = planned(net, {"macs": 0.7}, slow, formats=formats)
    assert plan.factorised
    assert plan.planned["macs"] <= 0.7 * plan.dense["macs"]
    assert "this plan is not faster" in caplog.text


def test_an_example_is_needed(net: tuple[nn.Module, rw.Sites]) -> None:
    with pytest.raises(ValueError, match="a latency budget is measured: pass an input as example="):
        rw.choose(*net, keep={"latency": 0.5}, metric="weight")
