"""Times of a network's layers: what is measured, how often, and under which name it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.latency import Latency, Work
from rankwise.latency.cache import Cache
from rankwise.latency.engine import Running
from rankwise.latency.layers import calls_of
from rankwise.latency.roofline import Device, RooflineEngine
from rankwise.latency.table import FASTER, PROBES, TURNS, Table
from rankwise.plan import Curve, Option, dense_option

DENSE_LAYER = "conv2d 16x16x3x3 float32 stride1,1 padding1,1 dilation1,1 bias @ 1x16x8x8 float32: dense"
DEVICE = Device(name="paper", peak=1e9, bandwidth=1e12, tile=1, overhead=1e-6)


class Counting(RooflineEngine):
    """A roofline that remembers what it was asked, and may slow down."""

    def __init__(self, slower: float = 1.0) -> None:
        super().__init__(DEVICE)
        self.asked: list[str] = []
        self.slower = slower

    def times(self, works: Mapping[str, Work], **options: Any) -> dict[str, Latency]:
        self.asked += works
        return {name: time * self.slower for name, time in super().times(works, **options).items()}


class Net(nn.Module):
    """Two layers of one shape, one of them called twice, and one of another size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.same = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=self.same(self.same(self.one(x))).mean((2, 3)))


def table(folder: Path, engine: Counting, model: nn.Module | None = None) -> tuple[Table, rw.Sites, dict[str, Curve]]:
    torch.manual_seed(0)
    model = (model or Net()).eval()
    x = torch.randn(1, 16, 8, 8)
    sites = rw.find(model, x)
    curves = rw.profile(model, sites, metric="weight", round_to=2)
    return Table(engine, model, sites, x, metric="weight", cache=Cache(engine, model, folder=folder)), sites, curves


def test_inputs_of_every_call() -> None:
    model = Net()
    x = torch.randn(2, 16, 8, 8)
    calls = calls_of(model, rw.find(model, x), x)
    assert [str(given) for given in calls["same"]["same"]] == ["2x16x8x8 float32"] * 2
    assert [str(given) for given in calls["head"]["head"]] == ["2x16 float32"]


def test_one_shape_is_measured_once(tmp_path: Path) -> None:
    engine = Counting()
    found, sites, curves = table(tmp_path, engine)
    found.learn(curves)
    options = [each for each in engine.asked if not each.endswith("dense")]
    assert len(options) == len(set(options))
    assert {each for each in engine.asked if each.startswith("conv2d") and each.endswith("dense")} == {DENSE_LAYER}
    dense = [found.seconds(name, dense_option(sites[name])).median for name in ("one", "same", "head")]
    assert dense[1] == pytest.approx(2 * dense[0])
    assert dense[2] == pytest.approx(DEVICE.overhead + 16 * 12 / DEVICE.peak)


def test_a_layer_and_all_that_it_may_become_share_one_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: dict[tuple[int, str], set[int]] = {}

    class Looking(Counting):
        def times(self, works: Mapping[str, Work], **options: Any) -> dict[str, Latency]:
            turn = len(self.asked)
            for name, work in works.items():
                inputs.setdefault((turn, name.partition(": ")[0]), set()).add(id(work.given[0][0]))
            return super().times(works, **options)

    monkeypatch.setattr("rankwise.latency.table.TOGETHER", 4 * 16 * 64)  # bytes of one input: a layer at a time
    engine = Looking()
    asked: list[int] = []
    found, _, curves = table(tmp_path, engine)
    found.learn(curves, lambda batches, _: asked.append(len(list(batches))) or batches)  # type: ignore[func-returns-value]
    assert asked[0] == 2
    assert all(len(each) == 1 for each in inputs.values())


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    for expected in (True, False):
        engine = Counting()
        found, _, curves = table(tmp_path, engine)
        found.learn(curves)
        assert bool(engine.asked) is expected


def test_options_between_are_told_from_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwise.latency.table.LEARNING", 0.0)
    found, sites, curves = table(tmp_path, Counting())
    found.learn(curves)
    svd = [option for option in curves["one"] if option.format == "svd"]
    measured = [("one", option) in found for option in svd]
    assert sum(measured) == min(PROBES, len(svd))
    site = sites["one"]
    for option in svd:  # this device takes time in proportion to the work
        time = 2 * DEVICE.overhead + option.macs / DEVICE.peak
        assert found.seconds("one", option).median == pytest.approx(time, rel=1e-6), (site, option)


def test_all_options_of_quick_layers_that_may_be_chosen_are_measured(tmp_path: Path) -> None:
    found, sites, curves = table(tmp_path, Counting())
    found.learn(curves)
    dense = found.seconds("one", dense_option(sites["one"])).median
    for option in curves["one"]:
        time = found.seconds("one", option).median
        beaten = any(
            found.seconds("one", other).median < FASTER * time and other.error <= option.error
            for other in curves["one"]
        )
        assert ("one", option) in found or time >= dense or beaten, option


def test_no_batch_is_larger_than_what_takes_turns_well(tmp_path: Path) -> None:
    class Sizes(Counting):
        def times(self, works: Mapping[str, Work], **options: Any) -> dict[str, Latency]:
            asked.append(list(works))
            return super().times(works, **options)

    asked: list[list[str]] = []
    found, _, curves = table(tmp_path, Sizes(), nn.Sequential(nn.Conv2d(16, 64, 3), nn.Conv2d(64, 64, 3)))
    found.measure([(name, option) for name, curve in curves.items() for option in curve])
    assert len(asked) > 1
    assert all(len(each) <= TURNS + 1 and any(name.endswith("dense") for name in each) for each in asked)


def test_what_a_call_costs_without_a_layer_is_not_the_layers(tmp_path: Path) -> None:
    class Calls(Running):
        """Layers of one millisecond and calls of two; a machine that makes calls slow leaves layers as they are."""

        name, summary, call = "calls", "", 2e-3

        def prepare(self, work: Work) -> Any:
            raise NotImplementedError

        def times(self, works: Mapping[str, Work], **options: Any) -> dict[str, Latency]:
            own = {name: self.call + 1e-3 * (not isinstance(work.module, nn.Identity)) for name, work in works.items()}
            return {name: Latency(median=each, low=each, high=each) for name, each in own.items()}

    engine, model = Calls(), Net().eval()
    sites = rw.find(model, x := torch.randn(1, 16, 8, 8))
    found = Table(engine, model, sites, x, metric="weight", cache=Cache(engine, model, folder=tmp_path))
    dense = dense_option(sites["one"])
    found.measure([("one", dense)])
    assert found.seconds("one", dense).median == pytest.approx(1e-3)
    engine.call = 4e-3
    assert found.drift() == 1.0
    again = Table(engine, model, sites, x, metric="weight", cache=Cache(engine, model, folder=tmp_path))
    again.learn({"one": [dense]})
    assert again.drift() == pytest.approx(1.0)


def test_a_slower_machine_is_slower_for_the_dense_layer_too(tmp_path: Path) -> None:
    engine = Counting()
    found, sites, curves = table(tmp_path, engine)
    found.measure([("one", dense_option(sites["one"]))])
    option = next(each for each in curves["one"] if each.format == "svd")
    engine.slower = 3.0
    found.measure([("one", option)])
    assert found.seconds("one", option).median == pytest.approx(2 * DEVICE.overhead + option.macs / DEVICE.peak)


def test_faster_means_by_more_than_the_noise(tmp_path: Path) -> None:
    engine = Counting()
    found, sites, curves = table(tmp_path, engine)
    dense, option = dense_option(sites["one"]), next(each for each in curves["one"] if each.format == "svd")
    found.measure([("one", option)])
    assert found.is_faster("one", option)
    assert not found.is_faster("one", dense)

    def noisy(name: str, each: Option) -> Latency:
        return {"dense": Latency(median=1.0, low=0.9, high=1.1), "svd": Latency(median=0.9, low=0.8, high=1.0)}[
            each.format
        ]

    found.seconds = noisy  # type: ignore[method-assign]
    assert not found.is_faster("one", option)


def test_names_of_measurements_hold_all_that_matters(tmp_path: Path) -> None:
    engine = Counting()
    model = nn.Sequential(nn.Conv2d(16, 8, 3, stride=2, padding=1, bias=False)).eval()
    found, _, curves = table(tmp_path, engine, model)
    option = next(each for each in curves["0"] if each.format == "tucker2")
    found.measure([("0", option)])
    layer = "conv2d 8x16x3x3 float32 stride2,2 padding1,1 dilation1,1 @ 1x16x8x8 float32"
    assert engine.asked == [f"{layer}: dense", f"{layer}: tucker2 {','.join(map(str, option.ranks))}"]


def test_an_embedding_and_its_tied_head(tmp_path: Path) -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(60, 16), nn.Linear(16, 60, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x))

    engine, model, x = Counting(), Language().eval(), torch.arange(5)[None]
    sites = rw.find(model, x)
    curves = rw.profile(model, sites, metric="weight", formats="svd", round_to=1)
    found = Table(engine, model, sites, x, metric="weight", cache=Cache(engine, model, folder=tmp_path))
    ((name, curve),) = curves.items()
    found.learn(curves)
    option = next(each for each in curve if each.ranks == (2,))
    linear = 5 * (2 * 16 + 2 * 60) + 5 * 2 * 16  # the head, and the table's second layer
    assert found.seconds(name, option).median > linear / DEVICE.peak
    assert found.is_faster(name, option)
