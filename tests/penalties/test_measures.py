"""Measures of singular values: known answers, and slopes that are their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rankwise.penalties import MEASURES, get_measure
from rankwise.penalties.measures import EffectiveRank, LogDet, Nuclear, Schatten, SquaredHoyer, StableRank

S = torch.tensor([3.0, 1.5, 1.5, 0.2], dtype=torch.float64)


def value(name: str, *values: float) -> float:
    return float(get_measure(name).value(torch.tensor(values, dtype=torch.float64)))


def test_known_values() -> None:
    assert value("effective_rank", *[1.0] * 5) == pytest.approx(5)
    assert value("effective_rank", 7.0, 0.0, 0.0) == pytest.approx(1)
    assert value("effective_rank", 2.0, 1.0) == pytest.approx(1.889882, abs=1e-6)
    assert value("stable_rank", *[1.0] * 5) == pytest.approx(5)
    assert value("nuclear", *[1.0] * 5) == pytest.approx(5)
    assert math.sqrt(value("hoyer", *[1.0] * 5)) == pytest.approx(math.sqrt(5))
    assert value("hoyer", 4.0, 0.0, 0.0) == pytest.approx(1)
    assert value("log_det:epsilon=1.0", math.e - 1, 0.0) == pytest.approx(1)
    assert value("schatten:p=1.0,smooth=1e-9", 2.0, 1.0) == pytest.approx(3)


@pytest.mark.parametrize("name", MEASURES)
def test_slopes_are_differences(name: str) -> None:
    measure, step = get_measure(name), 1e-6
    # The largest singular value is single: the stable rank has a kink where two are largest.
    for k, slope in enumerate(measure.slope(S)):
        change = torch.zeros_like(S)
        change[k] = step
        difference = (measure.value(S + change) - measure.value(S - change)) / (2 * step)
        assert float(slope) == pytest.approx(float(difference), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", MEASURES)
def test_which_depend_on_the_scale(name: str) -> None:
    measure = get_measure(name)

    def is_same(one: Tensor, other: Tensor) -> bool:
        return bool(torch.allclose(one, other))

    assert is_same(measure.value(3 * S), measure.value(S)) == measure.scale_invariant
    assert is_same((measure.slope(S) * S).sum(), S.new_zeros(())) == measure.scale_invariant


def test_names_and_settings() -> None:
    assert get_measure("schatten:p=0.25") == Schatten(p=0.25)
    assert list(MEASURES.values()) == [Nuclear, Schatten, SquaredHoyer, EffectiveRank, StableRank, LogDet]
    with pytest.raises(ValueError, match="unknown measure 'nucular'; did you mean nuclear"):
        get_measure("nucular")
    with pytest.raises(ValueError, match="there is no setting 'q'; its settings are p, smooth"):
        get_measure("schatten:q=1")
    with pytest.raises(ValueError, match="both must be above 0"):
        get_measure("schatten:p=0")
    with pytest.raises(ValueError, match=r"epsilon is 0\.0; it must be above 0"):
        get_measure("log_det:epsilon=0")
