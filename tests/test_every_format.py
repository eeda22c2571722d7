"""Every format on the whole way: plan, one-shot and sequential, counts, save and load, further training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from benchmarks.determinism import Net as Kinds
from support.nets import batches_of, make, outputs
from torch import Tensor, nn

import rankwise as rw
from rankwise.formats import Ranks, get_format, of_role
from rankwise.layers.kinds import Role

pytestmark = pytest.mark.usefixtures("one_thread")


# Forms that settings make, each for one layer of the network at least.
SETTINGS = (
    *("stt:slices=4", "str:cores=all,outputs=3x4", "tt:outputs=2x4x1,inputs=3x2x2", "btd:inputs=2x6"),
    *("ht:tree=tc/q", "ht:outputs=1x2x2x2,inputs=2x3x1x2", "kronecker:kernel=3x1", "kronecker:outputs=2x4,inputs=6x2"),
)
# Of a layer's ranks; what has no closed form takes many times longer with more of them.
MOST = 6


class Case(NamedTuple):
    """A network, data, sites, a plan that gives every layer the format that takes it, and its sequential result."""

    model: nn.Module
    data: list[Tensor]
    plan: rw.Plan
    small: nn.Module


@pytest.fixture(scope="module", params=[*of_role(Role.LAYER), *SETTINGS])
def case(request: pytest.FixtureRequest) -> Case:
    model, data = make(Kinds), batches_of(24, 4, 9, 8, count=2)
    sites = rw.find(model, data[0][:1])
    format = get_format(request.param)
    pins: dict[str, tuple[str, Ranks]] = {}
    for name, site in sites.items():
        if format.refuses(site) is None:
            pins[name] = format.name, tuple(max(1, min(limit // 2, MOST)) for limit in format.limits(site))
    stats = rw.collect(model, data)
    keep = {"params": 10 * sites.total_params}  # what is pinned is taken, whatever it costs
    plan = rw.choose(model, stats, keep=keep, formats=format.name, pin=pins, ignore=sorted(sites.keys() - pins.keys()))
    assert {row.format for row in plan.rows} <= {format.name, "dense"}
    assert sum(row.format == format.name for row in plan.rows) == len(pins) > 0
    small = rw.factorise(model, plan, data=data, positions="all", engine="graph")
    return Case(model, data, plan, small)


def test_counts_and_errors(case: Case) -> None:
    model, data, plan, graph = case
    stats = rw.collect(model, data, positions="all")
    one_shot = rw.factorise(model, plan, stats)
    for small in (one_shot, graph):
        counted = rw.find(small, data[0][:1])
        assert (counted.total_params, counted.total_macs) == (plan.planned["params"], plan.planned["macs"])
    wanted = outputs(model, data)
    errors = [float((outputs(small, data) - wanted).square().mean()) for small in (one_shot, graph)]
    assert all(error < float(wanted.var()) for error in errors)


# An engine knows no formats: one more fit of each that has no closed form is for the slow tests.
@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[pytest.mark.slow] * format.estimates) for name, format in of_role(Role.LAYER).items()],
    indirect=True,
)
def test_both_engines_fit_alike(case: Case) -> None:
    hooks = rw.factorise(case.model, case.plan, data=case.data, positions="all", engine="hooks")
    torch.testing.assert_close(outputs(hooks, case.data), outputs(case.small, case.data), rtol=1e-3, atol=1e-4)


def test_save_and_load(case: Case, tmp_path: Path) -> None:
    rw.save(case.small, tmp_path / "out")
    loaded = rw.load(make(Kinds, seed=7), tmp_path / "out")
    assert torch.equal(outputs(loaded, case.data), outputs(case.small, case.data))


def test_half_precision(case: Case) -> None:
    half = rw.factorise(make(Kinds).bfloat16(), case.plan, data=[batch.bfloat16() for batch in case.data])
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_further_training(case: Case) -> None:
    small = copy.deepcopy(case.small).train()
    small(case.data[0]).square().mean().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.slow
def test_auto_considers_all_and_drops_what_is_beaten() -> None:
    model, data = make(Kinds), batches_of(24, 4, 9, 8, count=2)
    stats = rw.collect(model, data)
    closed, auto = rw.profile(model, stats), rw.profile(model, stats, formats="auto")
    for name, curve in auto.items():
        assert {(o.format, o.ranks) for o in closed[name]} <= {(o.format, o.ranks) for o in curve}
    offered = {option.format for curve in auto.values() for option in curve}
    assert offered > {"dense", "svd", "spatial_svd", "tucker2"}
    assert offered <= {"dense", *rw.FORMATS}
    for keep in (0.6, 0.3):
        totals = [
            sum(row.error for row in rw.choose(model, stats, keep={"macs": keep}, curves=curves).rows)
            for curves in (auto, closed)
        ]
        assert totals[0] <= totals[1] + 1e-9
    plan = rw.choose(model, stats, keep={"macs": 0.3}, formats="auto")
    small = rw.factorise(model, plan, data=data)
    assert rw.find(small, data[0][:1]).total_macs == plan.planned["macs"] <= 0.3 * plan.dense["macs"]
