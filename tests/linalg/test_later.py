"""A metric that is made later answers as the metric itself, and is made once, when needed."""

from __future__ import annotations

import torch

from rankwise.linalg.later import Later
from rankwise.linalg.metric import Metric, Sampled


def test_answers_as_the_metric_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    rows_ND, M_TD = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    B_CR = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    made = []

    def make() -> Metric:
        made.append(Sampled(rows_ND, 0.1))
        return made[-1]

    metric = Later(make, 6, torch.device("cpu"))
    assert (metric.dim, made) == (6, [])
    for own, plain in ((metric, Sampled(rows_ND, 0.1)), (metric.to(torch.float64), Sampled(rows_ND, 0.1))):
        assert torch.equal(own.times(M_TD), plain.times(M_TD))
        assert torch.equal(own.dense(), plain.dense())
        assert torch.equal(own.inner(M_TD), plain.inner(M_TD))
        assert torch.equal(own.marginal((3, 2), (0,)), plain.marginal((3, 2), (0,)))
        assert torch.equal(own.fold(B_CR, 2).dense(), plain.fold(B_CR, 2).dense())
        assert torch.equal(own.spread(B_CR, M_TD, 2), plain.spread(B_CR, M_TD, 2))
        assert torch.equal(own.nested_projection(M_TD), plain.nested_projection(M_TD))
        assert own.energy(M_TD) == plain.energy(M_TD)
    assert len(made) == 1
