"""All verbs in a row: the budget, the report, and a model that is left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.nets import Residual, batches_of, chains, make, outputs, unchanged
from torch import nn

import rankwise as rw
from rankwise.formats.svd import SVD


@pytest.mark.parametrize("method", ["sequential", "one-shot"])
@pytest.mark.parametrize("keep", [{"macs": 0.6}, {"params": 0.6}, {"bytes": 0.6}, {"params": 7000}])
def test_the_budget_is_met_and_counted(method: str, keep: dict[str, float]) -> None:
    model, batches = make(Residual).train(), batches_of(8, 3, 8, 8)
    with unchanged(model):
        small, report = rw.compress(model, batches, keep=keep, method=method)
    assert small is not model
    assert type(small) is Residual
    ((unit, amount),) = keep.items()
    dense, compressed = report.dense, report.compressed
    assert getattr(compressed, unit) <= (amount if amount > 1 else amount * getattr(dense, unit))
    assert report.plan.planned == {"params": compressed.params, "macs": compressed.macs, "bytes": compressed.bytes}
    assert report.plan.dense == {"params": dense.params, "macs": dense.macs, "bytes": dense.bytes}
    assert rw.find(small, batches[0][:1]).total_macs == compressed.macs
    assert set(chains(small)) == {row.site for row in report.plan.factorised}
    assert set(report.seconds) == {"collect", "choose", "factorise"}
    assert f"{len(chains(small))} of {len(report.plan)} sites factorised" in str(report)
    assert all(module.training for module in small.modules())


def test_it_is_the_verbs_in_a_row() -> None:
    model, batches = make(Residual), batches_of(8, 3, 8, 8)
    stats = rw.collect(model, batches, positions=7, seed=2)
    plan = rw.choose(model, stats, keep={"macs": 0.6}, formats=("svd",), ignore=["head"])
    for method, options in (("one-shot", {}), ("sequential", {"data": batches, "positions": 7, "seed": 2})):
        expected = rw.factorise(model, plan, stats, **options)
        constraints: dict[str, Any] = {"formats": ("svd",), "ignore": ["head"]}
        for given in (None, stats):
            small, report = rw.compress(
                model, batches, keep={"macs": 0.6}, method=method, stats=given, positions=7, seed=2, **constraints
            )
            assert report.plan == plan
            assert torch.equal(outputs(small, batches), outputs(expected, batches))
            assert ("collect" in report.seconds) == (given is None)


def test_data_of_any_kind() -> None:
    model, batches = make(Residual), batches_of(8, 3, 8, 8)
    expected = outputs(rw.compress(model, batches, keep={"macs": 0.6})[0], batches)
    labelled = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.cat(batches), torch.zeros(32)), batch_size=8
    )
    for data in (tuple(batches), iter(batches), (x for x in batches), rw.Batches.of(batches), rw.inputs_only(labelled)):
        with unchanged(model, rng=not hasattr(data, "_loader")):  # a DataLoader draws its own seed
            small, _ = rw.compress(model, data, keep={"macs": 0.6})
        assert torch.equal(outputs(small, batches), expected)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    model, batches = make(Residual), batches_of(8, 3, 8, 8)
    small, report = rw.compress(model, batches, keep={"macs": 0.6})
    report.plan.save(tmp_path / "plan.yaml")
    plan = rw.Plan.load(tmp_path / "plan.yaml")
    assert plan == report.plan
    again = rw.factorise(model, plan, data=batches)
    assert torch.equal(outputs(again, batches), outputs(small, batches))
    report.sites.select(["block*"])
    rw.save(small, tmp_path / "out", plan=plan)
    assert torch.equal(outputs(rw.load(make(Residual, seed=5), tmp_path / "out"), batches), outputs(small, batches))


def test_compressing_what_was_compressed() -> None:
    model, batches = make(Residual), batches_of(8, 3, 8, 8)
    first, _ = rw.compress(model, batches, keep={"macs": 0.7})
    with unchanged(first):
        second, report = rw.compress(first, batches, keep={"macs": 0.8})
    assert report.compressed.macs is not None
    assert report.dense.macs is not None
    assert report.compressed.macs <= 0.8 * report.dense.macs
    assert report.compressed.macs == report.plan.planned["macs"]
    assert outputs(second, batches).isfinite().all()


def test_progress_is_told() -> None:
    told: dict[str, int] = {}

    def progress(items: Any, name: str) -> Any:
        for item in items:
            yield item
            told[name] = told.get(name, 0) + 1

    batches = batches_of(8, 3, 8, 8)
    _, report = rw.compress(make(Residual), batches, keep={"macs": 0.6}, progress=progress)
    assert told == {"statistics": len(batches), "profile": len(report.sites), "factorise": len(report.plan.factorised)}


def test_compressed_networks_can_be_trained() -> None:
    model, batches = make(Residual), batches_of(32, 3, 8, 8)
    small, _ = rw.compress(model, batches, keep={"macs": 0.25})
    targets = [outputs(model, [x]) for x in batches]
    before = (outputs(small, batches) - torch.cat(targets)).square().mean()
    optimiser = torch.optim.SGD(small.parameters(), lr=0.02)
    for _ in range(10):
        for x, target in zip(batches, targets, strict=True):
            optimiser.zero_grad()
            (small(x) - target).square().mean().backward()
            optimiser.step()
    assert (outputs(small, batches) - torch.cat(targets)).square().mean() < 0.95 * before


def test_an_unknown_method() -> None:
    model = make(Residual)
    with (
        unchanged(model),
        pytest.raises(ValueError, match="unknown method 'magic'"),
    ):
        rw.compress(model, batches_of(8, 3, 8, 8), keep={"macs": 0.5}, method="magic")


def test_a_format_that_is_not_registered_can_be_used_but_not_stored(tmp_path: Path) -> None:
    class Own(SVD):
        name = "own_svd"

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    data = [torch.randn(64, 32)]
    for method in ("sequential", "one-shot"):
        small, report = rw.compress(model, data, keep={"params": 0.6}, formats=[Own()], method=method)
        assert {row.format for row in report.plan.factorised} == {"own_svd"}
        assert small[0].format.name == "own_svd"
    with pytest.raises(ValueError, match=r"'own_svd' is not registered.*register first"):
        rw.save(small, tmp_path / "out")
    with pytest.raises(ValueError, match="'own_svd' cannot be timed"):
        rw.compress(model, data, keep={"latency": 0.5}, formats=[Own()])
