"""From expanded networks to small ones: ranks that are known, budgets, and the metric."""

from __future__ import annotations

import copy

import pytest
import torch
from support.nets import Residual, batches_of, chains, make, outputs, unchanged
from torch import Tensor, nn

import rankwise as rw
from rankwise.formats.weights import read
from rankwise.linalg.evbmf import evbmf
from rankwise.training import constrain_, expand_, truncate

pytestmark = pytest.mark.usefixtures("one_thread")


def planted(noise: float = 0.0) -> tuple[nn.Module, Tensor]:
    """A convolution of Tucker ranks (5, 4), a linear layer of rank 6, and noise."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    model = nn.Sequential(nn.Conv2d(20, 30, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(30, 40))
    kernel = torch.einsum("tr,rsxy,cs->tcxy", normal(30, 5), normal(5, 4, 3, 3), normal(20, 4))
    matrix = normal(40, 6) @ normal(6, 30)
    with torch.no_grad():
        for layer, weight in ((model[0], kernel), (model[4], matrix)):
            layer.weight.copy_(weight + noise * normal(*weight.shape))  # type: ignore[union-attr, operator]
    return model.eval(), torch.randn(4, 20, 6, 6, generator=generator)


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_planted_ranks_are_found_and_the_network_cut_to_them(noise: float, constrained: bool) -> None:
    model, x = planted(noise)
    before = outputs(model, [x])
    wide = expand_(model, rw.find(model, x))
    if constrained:
        constrain_(wide)
    with unchanged(wide, rng=False):
        small, plan = truncate(wide, x)
    assert {row.site: (row.format, row.ranks) for row in plan.rows} == {"0": ("tucker2", (5, 4)), "4": ("svd", (6,))}
    assert plan.rule == "evbmf"
    assert {name: chain.ranks for name, chain in chains(small).items()} == {"0": (5, 4), "4": (6,)}
    assert float((outputs(small, [x]) - before).norm() / before.norm()) < noise + 1e-5
    assert rw.evaluate.size(small).params == plan.planned["params"] < plan.dense["params"]


def test_the_ranks_of_the_cores_are_those_of_the_weights_while_factors_are_orthonormal() -> None:
    model, x = planted(0.1)
    wide = expand_(model, rw.find(model, x))
    core = read(wide[0][1])  # type: ignore[index]
    assert [evbmf(core.transpose(0, dim).flatten(1)).rank for dim in (0, 1)] == [5, 4]
    assert evbmf(read(wide[4][1])).rank == 6  # type: ignore[index]


def test_every_chain_keeps_its_format() -> None:
    model, data = make(Residual), batches_of(2, 3, 8, 8)
    wide = expand_(model, rw.find(model, data[0]), only=["*conv*", "*downsample*"])
    small, plan = truncate(wide, data[0], rule="uniform:ratio=0.6")
    formats = {row.site: row.format for row in plan.rows}
    assert formats["head"] == "dense"
    assert formats["block2.conv1"] == "tucker2"
    assert formats["block2.downsample.0"] == "svd"
    assert isinstance(small.head, nn.Linear)


def test_a_budget_scales_the_ranks_and_weakening_moves_them() -> None:
    model, x = planted(0.1)
    dense = rw.evaluate.size(model).params
    wide = expand_(model, rw.find(model, x))
    for keep in (0.15, 0.3):
        small, plan = truncate(wide, x, keep={"params": keep})
        assert rw.evaluate.size(small).params <= keep * dense
        assert plan.keep == {"params": keep}
    assert plan["0"].ranks > (5, 4)
    small, plan = truncate(wide, x, rule="evbmf:weakening=0.6")
    assert plan["4"].ranks == (int(30 - 0.6 * (30 - 6)),)


def test_noise_alone_stays_dense_or_gets_rank_one() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 48)), torch.randn(1, 64)
    nn.init.normal_(model[0].weight, std=0.01)
    wide = expand_(model, rw.find(model, x))
    assert truncate(wide, x)[1]["0"].format == "dense"
    assert truncate(wide, x, rule="evbmf:empty=one")[1]["0"].ranks == (1,)


def test_data_fits_to_the_outputs() -> None:
    """The same ranks; on correlated inputs the fit with data is nearer, and adds no bias that was not there."""
    model = make(lambda: nn.Sequential(nn.Linear(24, 24, bias=False), nn.ReLU(), nn.Linear(24, 8)))
    mixing = torch.randn(24, 24, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -2, 24)
    data = [x @ mixing.mT for x in batches_of(64, 24, count=4)]
    wide = expand_(copy.deepcopy(model), rw.find(model, data[0]))
    target = outputs(model, data)
    errors = {}
    for metric, given in (("weight", None), ("input", data)):
        small, plan = truncate(wide, data[0], rule="uniform:ratio=0.5", data=given)
        errors[metric] = float((outputs(small, data) - target).square().mean())
        assert rw.evaluate.size(small).params == plan.planned["params"]
    assert errors["input"] < 0.7 * errors["weight"]


def test_a_network_without_chains_is_refused() -> None:
    with pytest.raises(ValueError, match="no chain of factors"):
        truncate(nn.Sequential(nn.Linear(4, 4)), torch.zeros(1, 4))
