"""The pivoted pair beside the svd that it repeats with fewer numbers."""

from __future__ import annotations

import pytest
import torch
from support.nets import make
from torch import nn

import rankwise as rw
from rankwise.formats.weights import site_bias, site_weight
from rankwise.layers.modules import Pivoted
from rankwise.statistics.moments import identity_metrics

LAYERS = {
    "linear": (lambda: nn.Linear(12, 9), (2, 12)),
    "3 x 3": (lambda: nn.Conv2d(6, 9, 3, padding=1), (2, 6, 5, 5)),
    "groups": (lambda: nn.Conv2d(6, 9, 3, groups=3), (2, 6, 5, 5)),
}


@pytest.mark.parametrize("layer, shape", LAYERS.values(), ids=LAYERS)
def test_it_is_the_svd_with_fewer_parameters(layer: object, shape: tuple[int, ...]) -> None:
    model = make(lambda: nn.Sequential(layer())).double()  # type: ignore[operator]
    x = torch.randn(shape, dtype=torch.float64)
    site = rw.find(model, x)["0"]
    weight, metrics = site_weight(model, site), identity_metrics(site.groups, site.in_features)
    chains = []
    for name in ("svd", "pivoted_svd"):
        format = rw.FORMATS[name]
        factors = format.fit(site, weight, metrics, (2,))
        chain = format.build(model[0], (2,), bias=True)
        format.fill(chain, factors, site_bias(model, site))
        chains.append(chain)
    plain, pivoted = chains
    torch.testing.assert_close(pivoted(x), plain(x))
    spared = [sum(p.numel() for p in chain.parameters()) for chain in chains]
    assert spared[0] - spared[1] == site.groups * 2 * 2


def test_at_full_rank_nothing_is_left_to_combine() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(9, 4)))
    site = rw.find(model, torch.randn(1, 9))["0"]
    format = rw.FORMATS["pivoted_svd"]
    chain = format.build(model[0], (4,), bias=True)
    format.fill(chain, format.fit(site, site_weight(model, site), identity_metrics(1, 9), (4,)), model[0].bias)
    assert chain[1].rest is None
    x = torch.randn(5, 9)
    torch.testing.assert_close(chain(x), model[0](x))
    torch.testing.assert_close(chain.bias, model[0].bias)


def test_an_order_that_is_none_is_refused() -> None:
    good = Pivoted(nn.Linear(2, 2), torch.tensor([0, 2, 1, 3]), 0)
    state = good.state_dict()
    state["order"] = torch.tensor([0, 2, 1, 9], dtype=torch.int32)
    with pytest.raises(ValueError, match="'order' is not an order of 4 outputs"):
        good.load_state_dict(state)


def test_bytes_are_those_on_disk(tmp_path: object) -> None:
    model = make(lambda: nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5)))
    sites = rw.find(model, torch.randn(1, 32))
    plan = rw.choose(model, sites, keep={"bytes": 0.7}, metric="weight", formats="pivoted_svd")
    assert any(row.format == "pivoted_svd" for row in plan.rows)
    small = rw.factorise(model, plan, sites)
    assert plan.planned["bytes"] == rw.evaluate.size(small, torch.randn(1, 32)).bytes
