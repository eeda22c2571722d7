"""Formats with settings: their names, the objects of these names, and what cannot be."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from rankwise.formats import FORMATS, get_format, get_formats, is_registered
from rankwise.formats.hierarchical import HierarchicalTucker
from rankwise.formats.kronecker import Kronecker
from rankwise.formats.semi_tensor import SemiTensorTrain
from rankwise.formats.tensor_train import TensorRing, TensorTrain
from rankwise.formats.tucker2 import Tucker2


def test_the_name_is_written_with_what_differs_from_the_default() -> None:
    assert SemiTensorTrain().name == str(SemiTensorTrain(slices=2, cores="outer")) == "stt"
    assert str(SemiTensorTrain(inputs=(4, 16), slices=4)) == "stt:slices=4,inputs=4x16"
    assert TensorRing(outputs=(8, 2)).name == "tr:outputs=8x2"
    assert Kronecker(kernel=(3, 1)).name == "kronecker:kernel=3x1"
    assert HierarchicalTucker(tree="th/cw").name == "ht:tree=th/cw"
    assert Tucker2(sweeps=4).name == "tucker2"
    assert [format.name for format in FORMATS.values()] == list(FORMATS)


def test_a_name_is_the_format() -> None:
    format = get_format("tt:inputs=4x16x12,outputs=8x16x6")
    assert format == TensorTrain(outputs=(8, 16, 6), inputs=(4, 16, 12))
    assert get_format(format.name) == format
    assert get_format(format.name) is get_format(format.name)
    assert get_format("stt:slices=2") == FORMATS["stt"]
    assert get_format("stt:slices=4") != FORMATS["stt"]
    assert TensorTrain(outputs=(4, 2)) != TensorRing(outputs=(4, 2))


def test_formats_are_listed_by_the_name_that_they_write_themselves() -> None:
    names = ["svd", "tt:inputs=4x4,outputs=2x8", "stt:slices=2", SemiTensorTrain(slices=8)]
    assert list(get_formats(names)) == ["svd", "tt:outputs=2x8,inputs=4x4", "stt", "stt:slices=8"]
    assert list(get_formats(["stt:slices=4", "auto"])) == [*FORMATS, "stt:slices=4"]
    own = SemiTensorTrain(slices=4)
    assert get_formats({own.name: own}) == {own.name: own}
    with pytest.raises(ValueError, match="the format under the name 'stt' is called 'stt:slices=4'"):
        get_formats({"stt": own})


def test_a_format_of_ones_own_comes_before_a_known_one() -> None:
    own = SemiTensorTrain(slices=4)
    assert get_format("stt:slices=4", {own.name: own}) is own
    assert is_registered(own.name)
    assert not is_registered("own:slices=4")


def test_values_are_those_that_a_reader_has() -> None:
    format = TensorTrain(outputs=[8, 2])  # type: ignore[arg-type]
    assert format.outputs == (8, 2)
    assert hash(format) == hash(TensorTrain(outputs=(8, 2)))
    for other in (copy.deepcopy(format), pickle.loads(pickle.dumps(format))):
        assert (other, other.name) == (format, format.name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slices": 1}, "format 'stt:slices=1': slices is '1'; write for example slices=4"),
        ({"slices": 2.5}, "slices is '2.5'"),
        ({"cores": "inner"}, "cores is 'inner'"),
        ({"inputs": (4, 0)}, "inputs is '4x0'"),
        ({"inputs": 4096.5}, "inputs is '4096.5'"),
    ],
)
def test_objects_refuse_what_names_refuse(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SemiTensorTrain(**settings)  # type: ignore[arg-type]


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown format '3'"):
        get_format(3)  # type: ignore[arg-type]
