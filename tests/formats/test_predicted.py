"""The loss that second derivatives predict for a fit: closed forms against the fits themselves."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rankwise.formats import FORMATS, get_format
from rankwise.linalg.metric import Dense
from rankwise.network.site import Feeder, Heads, Site

LAYER = Site(name="fc", kind="linear", weight_shape=(9, 12))
UNITS = Site(
    name="up",
    kind="hidden",
    weight_shape=(9, 12),
    slots=(("up",), ("down",)),
    feeders=(Feeder(rows=1, inputs=9, bias=True),),
)
HEADS = Site(
    name="v_proj",
    kind="heads",
    weight_shape=(9, 12),
    slots=(("v_proj",), ("o_proj",)),
    feeders=(Feeder(rows=1, inputs=9, bias=True, shared=2),),
    heads=Heads(size=3, shared=2, first=0, stride=3),
)
JOINED = {"nystrom": UNITS, "head_svd": HEADS}


def moment(size: int, seed: int) -> Tensor:
    rows = torch.randn(4 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows.mT @ rows / len(rows)


@pytest.mark.parametrize("name, site", [("svd", LAYER), ("pivoted_svd", LAYER), *JOINED.items()])
def test_as_the_fits_say(name: str, site: Site) -> None:
    format, G, metric = get_format(name), moment(9, seed=1), Dense(moment(12, seed=2))
    weight = torch.randn(9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predicted = format.predicted(site, weight, metric, G)
    shared = site.heads.shared if site.heads else 1
    assert predicted.keys() >= {(rank,) for rank in range(shared, 10, shared)}
    for (rank,), loss in predicted.items():
        left = weight - format.fit(site, weight, [metric], (rank,)).dense()
        expected = 0.5 * float((G * metric.inner(left)).sum())
        assert loss == pytest.approx(expected, rel=2e-3, abs=1e-9)
    losses = [predicted[rank] for rank in sorted(predicted)]
    assert losses[-1] == pytest.approx(0.0, abs=1e-9)
    assert all(more <= fewer + 1e-12 for fewer, more in pairwise(losses))


def test_with_equal_weights_it_is_the_error() -> None:
    metric = Dense(moment(12, seed=3))
    weight = torch.randn(9, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    total = metric.energy(weight)
    for name, site in (("svd", LAYER), *JOINED.items()):
        format = get_format(name)
        predicted = format.predicted(site, weight, metric, torch.eye(9, dtype=torch.float64))
        for ranks, error in format.curve(site, weight, [metric], 1):
            assert predicted[ranks] == pytest.approx(0.5 * error * total, rel=1e-3, abs=1e-9)


def test_other_formats_have_none() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    having = {
        name for name, format in FORMATS.items() if name not in JOINED and format.predicted(LAYER, eye, Dense(eye), eye)
    }
    assert having == {"svd", "pivoted_svd"}
