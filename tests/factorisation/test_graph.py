"""The graph engine: each network runs over the data once, values are freed, and what cannot be traced says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.factorisation_nets import CASES, Branching, Concat, Keywords, PreActivation
from support.nets import Residual, batches_of, make, plan_of
from torch import Tensor, fx, nn

import rankwise as rw
from rankwise.factorisation import graph
from rankwise.running.pristine import pristine


class Counted:
    """Whole batches that went through each leaf module, by the module's identity. Copies of the model count, too."""

    def __init__(self, model: nn.Module, size: int) -> None:
        self.calls: Counter[int] = Counter()
        self.size = size
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.calls[id(module)] += len(output) == self.size

    def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
        return self


@pytest.mark.parametrize("build", [Residual, Concat, PreActivation])
def test_each_network_runs_over_the_data_once(build: Callable[[], nn.Module]) -> None:
    model, batches = make(build), batches_of(8, 3, 8, 8, count=3)
    plan = rw.choose(model, rw.collect(model, batches), keep={"macs": 0.6})
    assert len(plan.factorised) >= 3
    sites = {row.site for row in plan.factorised}
    found = traced(model, plan, batches)
    nodes, _ = graph.schedule(found, model, sites)
    last = max(place for place, node in enumerate(nodes) if node.target in sites)
    # One module may be applied at several places; nothing runs behind the last site.
    places = Counter(str(node.target) for node in nodes[: last + 1] if node.op == "call_module")
    opened = {name for name, count in places.items() if not list(model.get_submodule(name).children())}
    counted = Counted(model, size=8)
    small = rw.factorise(model, plan, data=batches, engine="graph")
    assert len(opened) > len(sites)
    for name in opened:
        assert counted.calls[id(model.get_submodule(name))] == 3 * places[name], name
    first = next(place for place, node in enumerate(nodes) if node.target in sites)
    agreeing = {str(node.target) for node in nodes[:first] if node.op == "call_module"}
    copied = {name: counted.calls[id(small.get_submodule(name))] for name in opened - sites}
    assert sum(copied.values()) > 0
    for name, ran in copied.items():  # while the networks agree the copy does not run
        places_after = places[name] - (name in agreeing)
        assert ran == 3 * places_after, name


def traced(model: nn.Module, plan: rw.Plan, batches: list[Any]) -> fx.Graph:
    with pristine(model):
        result = graph.trace(model, batches[0], [row.site for row in plan.factorised], set())
    assert isinstance(result, fx.Graph), result
    return result


def test_the_data_is_walked_over_a_fixed_number_of_times() -> None:
    class Data:
        walks = 0

        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Any:
            Data.walks += 1
            return iter(batches_of(8, 3, 8, 8, count=3))

    model = make(Residual)
    counts = []
    for sites in (["stem"], ["stem", "block1.conv1", "block2.conv1", "block3.conv1", "head"]):
        plan = plan_of(rw.find(model, torch.zeros(1, 3, 8, 8)), {name: ("svd", (3,)) for name in sites})  # noqa: C420
        Data.walks = 0
        rw.factorise(model, plan, data=Data(), engine="graph")
        counts.append(Data.walks)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("case", CASES)
def test_a_traced_network_computes_the_same(case: str) -> None:
    build, data = CASES[case]
    model, batches = make(build), data()
    sites = list(rw.find(model, batches[0]))
    with pristine(model):
        found = graph.trace(model, batches[0], sites, set())
    assert isinstance(found, fx.Graph), found
    called = [node.target for node in found.nodes if node.op == "call_module"]
    assert set(sites) <= set(called)


def test_a_module_without_sites_is_one_node() -> None:
    model = make(Residual)
    with pristine(model):
        found = graph.trace(model, torch.zeros(2, 3, 8, 8), ["block2.conv1"], set())
    assert isinstance(found, fx.Graph)
    targets = [node.target for node in found.nodes if node.op == "call_module"]
    assert {"block1", "block3", "block2.downsample", "block2.conv1"} <= set(targets)
    assert "block1.conv1" not in targets


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x))


class Lucky(nn.Module):
    """Another function of the traced sample's size than of another one's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x) * self.calls


@pytest.mark.parametrize(
    "build, site, reason",
    [
        (Branching, "first", "TraceError"),
        (Twice, "fc", "not called exactly once"),
        (Lucky, "fc", "something else"),
    ],
)
def test_the_reason_where_there_is_no_graph(build: Callable[[], nn.Module], site: str, reason: str) -> None:
    model = make(build)
    with pristine(model):
        found = graph.trace(model, torch.randn(2, 16 if build is Branching else 4), [site], set())
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize("where", ["block2", "block2.conv1", "block3", "stem"])
def test_hooks_that_change_values_stay_in_force(where: str) -> None:
    model, batches = make(Residual), batches_of(8, 3, 8, 8)
    model.get_submodule(where).register_forward_hook(lambda module, args, output: output * 2)
    plan = plan_of(rw.find(model, batches[0][:1]), {"block2.conv2": ("svd", (4,)), "head": ("svd", (3,))})
    graphs, hooks = (rw.factorise(model, plan, data=batches, engine=engine) for engine in ("graph", "hooks"))
    for a, b in zip(graphs.state_dict().values(), hooks.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "batch, expected",
    [
        ((torch.ones(1), None), {"a": 1, "b": None, "mask": None, "scale": 1.0, "flip": False}),
        ({"a": torch.ones(1), "scale": 2.0}, {"a": 1, "b": None, "mask": None, "scale": 2.0, "flip": False}),
        (torch.ones(1), {"a": 1, "b": None, "mask": None, "scale": 1.0, "flip": False}),
    ],
)
def test_arguments_by_name(batch: Any, expected: dict[str, Any]) -> None:
    assert graph.bind(Keywords(), batch) == expected


def test_variable_arguments() -> None:
    class Variable(nn.Module):
        def forward(self, *xs: Tensor, **options: Any) -> Tensor:
            return xs[0]

    assert graph.bind(Variable(), ()) == {}
    with pytest.raises(TypeError, match=r"through \*xs"):
        graph.bind(Variable(), (torch.ones(1),))
