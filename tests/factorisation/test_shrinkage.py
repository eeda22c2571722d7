"""Shrinkage towards the weight metric, chosen on held-out samples, where the answer is known by construction."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from support.nets import Residual, batches_of, chains, make, outputs, plan_of
from torch import Tensor, nn

import rankwise as rw
from rankwise.factorisation.shrinkage import SHARES, choose_shrinkage, output_error

D = 24


def net(seed: int = 0) -> nn.Module:
    """Two layers that can be factorised, the first one square."""
    return make(lambda: nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)), seed)


def samples(count: int, dims: int, seed: int, mean: float = 0.0) -> list[Tensor]:
    """Normal samples that fill the first `dims` of the inputs only."""
    x = torch.randn(count, D, generator=torch.Generator().manual_seed(seed)) + mean
    x[:, dims:] = 0
    return [x]


def plan_for(model: nn.Module, stats: rw.Statistics, rank: int = 8) -> rw.Plan:
    return plan_of(stats.sites, {"0": ("svd", (rank,))})


def test_statistics_of_a_wrong_subspace_are_given_up_for_the_weight_metric() -> None:
    """Isotropic samples are the weight metric: no fit of that rank has less error on them than its own."""
    model = net()
    stats = rw.collect(model, samples(2000, 4, seed=1))
    assert choose_shrinkage(model, plan_for(model, stats), stats, samples(4000, D, seed=2)) == 1.0


def test_a_subspace_that_is_partly_right_asks_for_something_between() -> None:
    """Here too the held-out samples vary most where the statistics do, but they vary elsewhere as well."""
    model = net()
    stats = rw.collect(model, samples(2000, 4, seed=1))
    here = samples(4000, D, seed=2)
    here[0][:, :4] *= 2
    chosen = choose_shrinkage(model, plan_for(model, stats), stats, here)
    assert 0 < chosen < 1


def test_own_statistics_of_many_rows_are_kept() -> None:
    model = net()
    spread = torch.logspace(1, -1, D)
    stats = rw.collect(model, [samples(4000, D, seed=1)[0] * spread])
    assert choose_shrinkage(model, plan_for(model, stats), stats, [samples(4000, D, seed=2)[0] * spread]) <= 0.01


def test_the_answer_is_the_best_of_the_shares_when_the_networks_are_built() -> None:
    """The error that decides is the one that the built layer has on the held-out samples, bias and all."""
    model = net()
    stats, here = rw.collect(model, samples(500, 6, seed=1, mean=1.0)), samples(300, D, seed=2, mean=1.5)
    plan = plan_for(model, stats)
    with torch.no_grad():
        wanted = model[0](here[0])
        real = {
            share: float((rw.factorise(model, plan, stats, shrink=share)[0](here[0]) - wanted).square().sum())
            for share in SHARES
        }
    assert choose_shrinkage(model, plan, stats, here) == min(real, key=real.__getitem__)


@pytest.mark.parametrize("groups", [1, 3])
def test_output_error_is_the_error_of_the_outputs(groups: int) -> None:
    model = make(lambda: nn.Sequential(nn.Conv2d(6, 9, 3, padding=1, groups=groups)))
    stats = rw.collect(model, batches_of(4, 6, 7, 7, seed=1), positions="all")
    here = [batch + 0.5 for batch in batches_of(4, 6, 7, 7, seed=2)]
    held = rw.collect(model, here, positions="all")
    small = rw.factorise(model, plan_of(stats.sites, {"0": ("svd", (2,))}), stats)
    dense, replaced = outputs(model, here), outputs(small, here)
    varied = dense - dense.mean((0, 2, 3), keepdim=True)
    W_GTD = model[0].weight.detach().double().reshape(groups, 9 // groups, -1)
    V_GTD = chains(small)["0"].weight.detach().double().reshape(W_GTD.shape)
    found = output_error(W_GTD - V_GTD, W_GTD, stats["0"], held["0"])
    assert found == pytest.approx(float((dense - replaced).square().sum() / varied.square().sum()), rel=1e-4)
    assert output_error(W_GTD - V_GTD, 0 * W_GTD, stats["0"], held["0"]) == 0.0


def test_it_tells_the_errors_that_decided(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    stats = rw.collect(model, samples(100, 4, seed=1))
    with caplog.at_level(logging.INFO, "rankwise"):
        assert choose_shrinkage(model, plan_for(model, stats), stats, samples(50, D, seed=2), shares=(0, 0.5)) == 0.5
    assert "0: " in caplog.text
    assert "0.5: " in caplog.text


def test_a_residual_network_behind_a_progress_bar() -> None:
    model, seen = make(Residual), []
    stats = rw.collect(model, batches_of(4, 3, 8, 8))
    plan = rw.choose(model, stats, keep={"macs": 0.6})

    def progress(rows, text):
        seen.append((len(rows), text))
        return rows

    assert choose_shrinkage(model, plan, stats, batches_of(2, 3, 8, 8, seed=5), progress=progress) in SHARES
    assert seen == [(len(plan.factorised), "shrinkage")]


def test_what_cannot_be_decided() -> None:
    model, here = net(), samples(20, D, seed=2)
    stats = rw.collect(model, samples(100, 4, seed=1))
    plan = plan_for(model, stats)
    with pytest.raises(ValueError, match='in the "weight" metric already'):
        choose_shrinkage(model, plan_of(stats.sites, {"0": ("svd", (8,))}, metric="weight"), stats, here)
    with pytest.raises(ValueError, match="factorises nothing"):
        choose_shrinkage(model, plan_of(stats.sites, {}), stats, here)
    with pytest.raises(ValueError, match="no share to try"):
        choose_shrinkage(model, plan, stats, here, shares=())
    with pytest.raises(ValueError, match=r"from 0 .* to 1 .*, not 1\.5"):
        choose_shrinkage(model, plan, stats, here, shares=(0, 1.5))
    with pytest.raises(ValueError, match="another structure"):
        choose_shrinkage(nn.Sequential(nn.Linear(3, 3)), plan, stats, here)
    with pytest.raises(ValueError, match="hold nothing for site '0'"):
        choose_shrinkage(model, plan, rw.collect(model, here, only={"2"}), here)


def test_compress_chooses_it_on_the_data_where_statistics_are_given() -> None:
    model, here = net(), samples(400, D, seed=2)
    stats = rw.collect(model, samples(2000, 4, seed=1))
    options = {"keep": {"macs": 0.9}, "stats": stats, "method": "one-shot", "include": "0", "pin": {"0": "svd:8"}}
    _, report = rw.compress(model, here, **options)
    assert report.plan.shrink == 1.0
    assert "shrinkage" in report.seconds
    for more in ({"shrink": 0.0}, {"method": "sequential"}, {"stats": None}):
        assert rw.compress(model, here, **{**options, **more})[1].plan.shrink == 0.0
    assert rw.compress(model, here, **{**options, "shrink": 0.25})[1].plan.shrink == 0.25


def test_a_shrunk_plan_goes_through_its_file_and_factorise_follows_it() -> None:
    model = net()
    stats = rw.collect(model, samples(2000, 4, seed=1))
    plan = rw.Plan.from_yaml(
        rw.choose(model, stats, keep={"macs": 0.9}, pin={"0": "svd:8"}, include="0", shrink=1.0).to_yaml()
    )
    assert plan.shrink == 1.0
    built = rw.factorise(model, plan, stats)[0]
    weight = model[0].weight.detach().double()
    U, S, Vh = torch.linalg.svd(weight)
    torch.testing.assert_close(built.weight.detach().double(), U[:, :8] * S[:8] @ Vh[:8], rtol=1e-4, atol=1e-5)
    assert plan["0"].error == pytest.approx(float(S[8:].square().sum() / S.square().sum()), rel=1e-6)
    other = rw.factorise(model, plan, stats, shrink=0.0)[0]
    assert not torch.allclose(other.weight, built.weight, atol=1e-3)


def test_a_share_that_is_none() -> None:
    model, data = net(), samples(100, D, seed=1)
    stats = rw.collect(model, data)
    plan = plan_for(model, stats)
    for wrong in (-0.1, 1.01, float("nan"), "auto", True):
        with pytest.raises(ValueError, match="shrink must be a number from 0"):
            rw.profile(model, stats, shrink=wrong)
        with pytest.raises(ValueError, match="shrink must be a number from 0"):
            rw.choose(model, stats, keep={"macs": 0.9}, shrink=wrong)
        with pytest.raises(ValueError, match="shrink must be a number from 0"):
            rw.factorise(model, plan, stats, shrink=wrong)
    with pytest.raises(ValueError, match=r"shrink=0.1 has no effect with data="):
        rw.factorise(model, plan, stats, data=data, shrink=0.1)


@pytest.mark.slow
def test_photographs_stand_in_for_the_pictures_that_a_network_was_trained_on(
    networks: ModuleType, tmp_path: Path
) -> None:
    """ResNet-20 from a file of statistics of shrunk photographs: far better than from its weights alone."""
    images, labels = networks.cifar10_lossless("test")
    photos = F.interpolate(networks.imagenet_photos()[0][:256].float(), size=(32, 32), mode="area")
    model, prepare = networks.resnet20(), networks.normalise_imagenet
    batches = [prepare(chunk.round().to(torch.uint8)) for chunk in photos.split(64)]
    stats = rw.Statistics.load(rw.collect(model, batches).without_rows().save(tmp_path / "stats"))
    right = {}
    for metric in ("input", "weight"):
        plan = rw.choose(model, stats, keep={"macs": 0.5}, metric=metric)
        small = rw.factorise(model, plan, stats)
        right[metric] = float((outputs(small, [prepare(images[:500])]).argmax(1) == labels[:500]).double().mean())
    assert right["input"] > right["weight"] + 0.1
    assert right["input"] > 0.8
