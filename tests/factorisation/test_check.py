"""A factorised network is run once and compared with its plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.nets import batches_of
from torch import Tensor, nn

import rankwise as rw
from rankwise.factorisation.check import check_result
from rankwise.layers.kinds import Role
from rankwise.network.counting import Recorder
from rankwise.surgery.rebuild import rebuild


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.twice = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(torch.relu(self.conv(x)).mean((2, 3)))
        return self.twice(torch.tanh(self.twice(x)))


def made() -> tuple[nn.Module, nn.Module, rw.Sites, rw.Plan]:
    torch.manual_seed(0)
    model, data = Net().eval(), batches_of(8, 3, 6, 6)
    stats = rw.collect(model, data)
    plan = rw.choose(model, stats, keep={"macs": 0.9}, pin={"fc": "svd:2", "twice": "svd:3"})
    return model, rw.factorise(model, plan, stats), stats.sites, plan


def planned(plan: rw.Plan) -> dict[str, int]:
    return {row.site: row.macs for row in plan.factorised}


def test_the_result_of_factorise_passes() -> None:
    model, small, sites, plan = made()
    check_result(model, small, sites, planned(plan), sites.example)


def test_macs_by_operators_are_those_by_layers() -> None:
    model, small, sites, _ = made()
    for network in (model, small):
        counts = []
        for by_operators in (False, True):
            with torch.no_grad(), Recorder(network, by_operators=by_operators) as record:
                network(sites.example)
            counts.append(record.total_macs)
        assert counts[0] == counts[1] > 0


def test_a_chain_that_is_called_less_often_is_named() -> None:
    model, small, sites, plan = made()
    small.forward = lambda x: small.twice(small.fc(torch.relu(small.conv(x)).mean((2, 3))))
    with pytest.raises(
        ValueError, match=r"site 'twice' cannot be factorised: the network calls it 1 times instead of 2"
    ):
        check_result(model, small, sites, planned(plan), sites.example)


def test_a_weight_that_is_put_together_is_named() -> None:
    model, small, sites, plan = made()
    small.fc.register_forward_hook(lambda layer, args, output: output + 0 * layer.weight.sum())
    with pytest.raises(ValueError, match=r"site 'fc' cannot be factorised: its dense weight is rebuilt"):
        check_result(model, small, sites, planned(plan), sites.example)


def test_what_is_read_of_the_dense_network_is_named() -> None:
    model, small, sites, plan = made()
    small.register_forward_hook(lambda layer, args, output: output @ model.twice.weight)
    with pytest.raises(ValueError, match=r"works on 'twice.weight' of the network it was copied from"):
        check_result(model, small, sites, planned(plan), sites.example)


def test_more_multiplications_than_planned_are_told() -> None:
    model, small, sites, plan = made()
    small.extra = nn.Linear(8, 8)
    small.register_forward_hook(lambda layer, args, output: layer.extra(output))
    with pytest.raises(ValueError, match=r"runs [\d,]+ multiply-accumulates in 'extra', the dense one 0"):
        check_result(model, small, sites, planned(plan), sites.example)


def test_a_chain_that_costs_more_than_planned_is_named() -> None:
    model, small, sites, plan = made()
    cheaper = {**planned(plan), "fc": planned(plan)["fc"] - 1}
    with pytest.raises(ValueError, match=r"site 'fc' cannot be factorised: its chain runs [\d,]+ multiply-acc"):
        check_result(model, small, sites, cheaper, sites.example)


class Routed(nn.Module):
    """Rows go through a layer by their values, which the first one's factors change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        taken = x.mean(-1) > 0
        y = x.clone()
        y[taken] = self.second(x[taken])
        return self.last(y)


def test_rows_that_go_another_way_are_no_difference() -> None:
    torch.manual_seed(0)
    model, data = Routed().eval(), [torch.randn(64, 16) for _ in range(3)]
    small, report = rw.compress(model, data, keep={"macs": 0.6}, example=data[0], method="one-shot")
    assert report.compressed.macs != report.plan.planned["macs"]  # the counts are of other rows
    assert "first" in {row.site for row in report.plan.factorised}
    assert torch.isfinite(small(data[0])).all()


def test_outputs_that_are_not_finite_name_the_first_site() -> None:
    model, small, sites, plan = made()
    with torch.no_grad():
        small.fc[0].weight.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"site 'fc' cannot be factorised: its outputs are not finite"):
        check_result(model, small, sites, planned(plan), sites.example)


def test_shared_chains_are_counted_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight, self.b.bias = self.a.weight, self.a.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    model = Tied().eval()
    sites = rw.find(model, torch.randn(2, 8))
    small = Tied().eval()
    rebuild(small, Role.LAYER, ["a", "b"], rw.FORMATS["svd"], (2,), bias=True)
    check_result(model, small, sites, {"a": 2 * 2 * 2 * (8 + 8)}, sites.example)


class Switched(nn.Module):
    """May ask for the class of its layer, as an update of the host may do."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.asks = asks
        self.fc, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.asks and not isinstance(self.fc, nn.Linear):
            return self.last(x)
        return self.last(torch.tanh(self.fc(x)))


def test_an_architecture_that_does_something_else_is_refused_when_loading(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = Switched(False).eval(), [torch.randn(32, 16) for _ in range(3)]
    small, report = rw.compress(model, data, keep={"macs": 0.8}, include=["fc"])
    rw.save(small, tmp_path / "out", plan=report.plan)
    same = rw.load(Switched(False).eval(), tmp_path / "out", example=data[0][:1])
    assert torch.equal(same(data[0]), small(data[0]))
    with pytest.raises(ValueError, match=r"cannot load .*site 'fc' cannot be factorised: the network calls it 0 times"):
        rw.load(Switched(True).eval(), tmp_path / "out", example=data[0][:1])
