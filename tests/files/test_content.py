"""Values of files: read strictly, known by their digest, checked against a class, and short in messages."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankwise.files import built, cut, digest, parse_json, parse_yaml, read_bytes, read_text, sha256_of, shown, told
from rankwise.files.tensors import read_tensors, write_tensors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 1}', "the key 'a' is there twice"),
        ('{"b": [{"a": 1, "a": 2}]}', "the key 'a' is there twice"),
        ("[NaN]", "the number 'NaN' is not finite"),
        ("[-Infinity]", "not finite"),
        ("[1e999]", "not finite"),
        ("[" * 34 + "]" * 34, "deeper than 32"),
        ("[" * 100_000, "deeper than 32"),
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("9" * 5000, "digits"),
    ],
)
def test_json_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_json_that_is_read() -> None:
    deep = "[" * 33 + "]" * 33
    assert parse_json('{"a": [1, 2.5, true, null, "x"]}') == {"a": [1, 2.5, True, None, "x"]}
    parse_json(deep)


BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"aliases such as \*a0 are not read"),
        ("&a [*a]", "aliases"),
        ("a: 1\na: 2", "the key 'a' is there twice"),
        ("a: .nan", "not finite"),
        ("a: -.inf", "not finite"),
        ("[" * 50, "deeper than 32"),
        ("a: [", "flow node"),
        ("? [a]\n: 1", "a key is"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("x: 2001-99-99", "month"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)


def test_equal_content_has_one_digest_and_other_content_another() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    same: list[tuple[Any, Any]] = [
        ([1, 2], (1, 2)),
        ({"a": 1, "b": 2}, OrderedDict(b=2, a=1)),
        (tensor, tensor.t().contiguous().t()),
    ]
    for one, other in same:
        assert digest(one) == digest(other)
    different = [
        *(
            None,
            True,
            1,
            1.0,
            "1",
            b"1",
            [],
            {},
            "",
            [[]],
            [1, [2]],
            [[1], 2],
            ["a", "b"],
            ["ab"],
            {"a": None},
            0.0,
            -0.0,
        ),
        *(tensor, tensor.t(), tensor.double(), tensor.half(), tensor.to(torch.bfloat16), tensor + 1, torch.zeros(0)),
        *(np.arange(3), np.arange(3.0)),
    ]
    assert len({digest(value) for value in different}) == len(different)
    with pytest.raises(TypeError, match="object has no digest"):
        digest([object()])
    assert digest([object()], loose=True) == digest([object()], loose=True)


@dataclass(frozen=True)
class Inner:
    name: str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    share: float | None
    table: dict[str, Inner]
    text: tuple[int, ...] | str = ()
    pair: tuple[str, int] = ("", 0)
    anything: Any = None


GOOD: dict[str, Any] = {"inner": {"name": "a", "sizes": [1, 2]}, "share": 0.5, "table": {"x": {"name": "b"}}}


def test_a_dataclass_from_plain_values() -> None:
    made = built(Outer, {**GOOD, "text": "same", "pair": ["a", 1], "anything": [object]})
    assert made == Outer(Inner("a", (1, 2)), 0.5, {"x": Inner("b")}, text="same", pair=("a", 1), anything=[object])
    assert built(Outer, {**GOOD, "share": None, "text": [1]}).text == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": 3}, "inner: a mapping is needed, not 3"),
        ({"inner": {"name": 3}}, "inner.name must be text, not 3"),
        ({"inner": {"name": "a", "sizes": [1, 2.0]}}, "inner.sizes must be a whole number, not 2.0"),
        ({"inner": {"name": "a", "sizes": [True]}}, "a whole number, not True"),
        ({"inner": {"name": "a", "sizes": [2**63]}}, "a whole number"),
        ({"inner": {"name": "a", "sizes": 5}}, "inner.sizes must be a list"),
        ({"inner": {}}, "inner: the field 'name' is missing"),
        ({"share": float("nan")}, "share must be a finite number"),
        ({"share": "x"}, "share must be a finite number"),
        ({"table": {"x": 1}}, r"table\['x'\]: a mapping is needed"),
        ({"table": {1: {"name": "a"}}}, "table must be text, not 1"),
        ({"pair": ["a"]}, "pair must be a list"),
        ({"more": 1}, "unknown field 'more'"),
    ],
)
def test_plain_values_of_another_kind(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(Outer, {**GOOD, **change})


def test_any_value_is_short_in_a_message() -> None:
    nest: list[Any] = []
    for _ in range(60):
        nest = [nest, nest]  # 2^60 lists, if they were written out

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    for value in (
        nest,
        "x" * 10**6,
        list(range(10**6)),
        {n: n for n in range(10**5)},
        10**5000,
        Broken(),
        b"x" * 10**6,
    ):
        assert len(shown(value)) <= 80
    assert shown("svd") == "'svd'"
    assert shown(10**5000) == "<int>"
    text = cut("start " + "x" * 10**6 + " end")
    assert len(text) <= 900
    assert text.startswith("start")
    assert text.endswith(" end")


def test_files_are_read_from_one_handle(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_text(tmp_path / "a")
    with pytest.raises(ValueError, match="it has 1 bytes, more than the limit of 0"):
        read_bytes(tmp_path / "a", 0)
    with pytest.raises(OSError):
        read_bytes(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="not a regular file"):
            read_bytes(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"nowhere: No such file.*; write it"), told(tmp_path / "nowhere", "write it"):
        read_bytes(tmp_path / "nowhere")


def test_tensors_know_their_content_and_are_not_bound_to_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"b": torch.randn(3, 4).t(), "a": torch.ones(2, dtype=torch.bfloat16)}
    write_tensors(tensors, path, {"what": "weights"})
    found, about = read_tensors(path)
    assert list(found) == ["a", "b"]
    assert about["what"] == "weights"
    whole = sha256_of(path)
    content = path.read_bytes()
    path.write_bytes(b"")  # neither do they change, nor does the process end
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    for changed in (content.replace(b"weights", b"weighty"), content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(changed)
        assert sha256_of(path) != whole
        with pytest.raises(ValueError, match="does not match its sha256"):
            read_tensors(path)
