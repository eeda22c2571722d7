"""The names that can be checked before PyTorch is imported are those of what there is."""

from __future__ import annotations

import pytest

import rankwise
from rankwise import latency, names
from rankwise.names import METRICS, check_engine_name, check_name


def test_there_are_no_other_formats_rules_and_engines() -> None:
    assert tuple(rankwise.FORMATS) == names.FORMATS
    assert tuple(rankwise.RULES) == names.RULES
    assert tuple(latency.ENGINES) == names.ENGINES


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inputs", "unknown metric 'inputs'; did you mean input? The metrics are input, diagonal, fisher, weight"),
        ("zebra", "unknown metric 'zebra'; the metrics are input, diagonal, fisher, weight"),
    ],
)
def test_a_name_that_does_not_exist_is_told_with_near_ones_and_all_that_do(name: str, message: str) -> None:
    for known in METRICS:
        check_name("metric", known, METRICS)
    with pytest.raises(ValueError) as error:
        check_name("metric", name, METRICS)
    assert str(error.value) == message


def test_an_engine_may_be_a_file() -> None:
    check_engine_name("roofline:phone.yaml")
    check_engine_name("auto", others=("auto",))
    with pytest.raises(ValueError, match=r"--engine 'tensorrt': unknown engine 'tensorrt'; the engines are torch, "):
        check_engine_name("tensorrt", where="--engine 'tensorrt': ")
    with pytest.raises(ValueError, match="unknown engine 'auto'"):
        check_engine_name("auto")
