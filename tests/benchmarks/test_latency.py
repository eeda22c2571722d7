"""The benchmark of plans for latency: what it calls worse, and what it reads off between two plans."""

from __future__ import annotations

import pytest
import torch
from benchmarks.latency import _between, complaints
from benchmarks.latency_networks import TOKENS, Encoder


def test_what_got_worse_is_named() -> None:
    where = {"network": "net", "engine": "torch"}
    rows = [
        {**where, "what": "latency 0.5", "ratio": 0.54, "off": 0.05},
        {**where, "what": "latency 0.5", "ratio": 0.60, "off": -0.2},
        {**where, "what": "latency 0.5", "least": 0.93},
        {**where, "what": "macs 0.5", "of_macs": 0.7},
        {**where, "what": "latency 0.7", "against_macs": 1.25},
    ]
    assert complaints(rows) == [
        "net, latency 0.5, torch: 0.600 of the dense time, above 0.55",
        "net, latency 0.5, torch: the prediction is off by -20%",
        "net, macs 0.5, torch: the speed-up is 0.70 of what the MACs say, below 0.8",
        "net, latency 0.7, torch: 1.250 of the time of a plan for MACs at equal agreement",
    ]


def test_time_at_equal_agreement() -> None:
    points = {90.0: 0.5, 94.0: 0.7, 98.0: 0.9}
    assert _between(points, 92.0) == pytest.approx(0.6)
    assert _between(points, 98.0) == pytest.approx(0.9)
    assert _between(points, 99.0) is None


def test_an_encoder_of_the_size_of_bert_base() -> None:
    with torch.device("meta"):
        model = Encoder()
        assert model(torch.zeros(1, TOKENS, dtype=torch.long)).shape == (1, TOKENS, 768)
    linear = sum(each.weight.numel() for each in model.modules() if isinstance(each, torch.nn.Linear))
    assert linear == 12 * (4 * 768**2 + 2 * 768 * 3072)
