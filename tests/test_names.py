"""The names that can be checked before PyTorch is imported are those of what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest

import rankwise
from rankwise import latency, names
from rankwise.names import METRICS, check_engine_name, check_name, read_format, written_format


def test_there_are_no_other_formats_rules_and_engines() -> None:
    assert tuple(rankwise.FORMATS) == names.FORMATS
    assert tuple(rankwise.RULES) == names.RULES
    assert tuple(latency.ENGINES) == names.ENGINES


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "inputs",
            "unknown metric 'inputs'; did you mean input? The metrics are input, diagonal, fisher, uncentred, weight",
        ),
        ("zebra", "unknown metric 'zebra'; the metrics are input, diagonal, fisher, uncentred, weight"),
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


def test_settings_are_those_of_the_formats() -> None:
    for name, format in rankwise.FORMATS.items():
        own = {field.name for field in fields(format)} if is_dataclass(format) else set()
        assert own == names.SETTINGS.get(name, {}).keys()
        for setting in names.SETTINGS.get(name, {}).values():
            assert re.fullmatch(setting.form, setting.example)
            assert setting.about


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("svd", "svd", {}),
        ("stt:slices=4", "stt", {"slices": 4}),
        ("str:slices=3,cores=all", "str", {"slices": 3, "cores": "all"}),
        ("tt:outputs=8x16x6,inputs=4x16x12", "tt", {"outputs": (8, 16, 6), "inputs": (4, 16, 12)}),
        ("btd:inputs=32x24", "btd", {"inputs": (32, 24)}),
        ("ht:tree=th/cw", "ht", {"tree": "th/cw"}),
        ("ht:tree=12/34", "ht", {"tree": "12/34"}),
        ("kronecker:kernel=3", "kronecker", {"kernel": (3,)}),
    ],
)
def test_a_format_is_read_as_it_is_written(text: str, name: str, settings: dict[str, object]) -> None:
    assert read_format(text) == (name, settings)
    assert written_format(name, settings) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sttt:slices=4", "unknown format 'sttt'; did you mean stt"),
        ("stt:slice=4", "there is no setting 'slice'; its settings are, for example, slices=4, cores=all, outputs="),
        ("stt:", "there is no setting ''; its settings are"),
        ("svd:16", "there is no setting '16'; svd has no settings"),
        ("stt:slices=4,slices=4", "slices stands there twice; keep one"),
        ("stt:slices=1", "slices is '1'; write for example slices=4: slices of a mode"),
        ("stt:slices=\u0664", "slices is '\u0664'"),
        ("stt:slices=-2", "slices is '-2'"),
        ("stt:slices", "slices is ''"),
        ("stt:cores=none", "cores is 'none'; write for example cores=all"),
        ("tt:outputs=8x0", "outputs is '8x0'; write for example outputs=8x16x6"),
        ("tt:outputs=2x2x2x2x2x2", "outputs is '2x2x2x2x2x2'"),
        ("btd:inputs=2x2x2", "inputs is '2x2x2'; write for example inputs=32x24"),
        ("ht:tree=tc", "tree is 'tc'; write for example tree=th/cw"),
        ("ht:tree=th/ch", "tree is 'th/ch'"),
        ("ht:tree=1t/23", "tree is '1t/23'"),
        ("kronecker:kernel=axb", "kernel is 'axb'; write for example kernel=3x1"),
    ],
)
def test_a_setting_that_cannot_be_is_told_with_those_that_can(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^--formats: .*{re.escape(message)}"):
        read_format(text, where="--formats: ")


def test_formats_are_read_without_torch() -> None:
    program = (
        "import sys; from rankwise.names import read_format; read_format('stt:slices=4'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
