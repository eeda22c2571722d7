"""The manifest by itself: there and back as text, and every field refused where it is missing, wrong or unknown."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest

from rankwise.artifact.manifest import FORMAT_VERSION, Manifest, StoredChain, fingerprint, outline
from rankwise.files import digest
from rankwise.plan import Plan, PlanRow

CHAIN = StoredChain(
    names=("fc", "again"), kind="linear", weight_shape=(8, 6), format="svd", ranks=(2,), bias=True, dtype="float32"
)
MANIFEST = Manifest(
    structure=(CHAIN,),
    dense_fingerprint="0a1b",
    tensors_bytes=321,
    tensors_sha256="2c3d",
    aliases={"again.0.weight": "fc.0.weight"},
    channels_last=("conv.weight",),
    unsaved_buffers={"scale": "float32"},
    plan=Plan(rows=(PlanRow(site="fc", format="svd", ranks=(2,), params=36, macs=28),)),
    figures={"accuracy": 0.75, "of": ["a", None]},
    provenance={"model": "Net"},
    folds={"norm": "conv"},
    unfused={"attention": (), "window": ("qkv", "proj")},
    plain_bytes=400,
    largest_error=0.01,
)

# A value of the right JSON that each field refuses, and what it asks for.
WRONG: dict[str, tuple[Any, str]] = {
    "format_version": (4.0, f"format_version is 4.0, this rankwise reads up to {FORMAT_VERSION}; install the version"),
    "structure": ([3], "structure must be a list of objects"),
    "dense_fingerprint": (7, "dense_fingerprint must be a string"),
    "tensors_bytes": (0, "tensors_bytes must be a positive integer"),
    "tensors_sha256": (None, "tensors_sha256 must be a string"),
    "aliases": ({"a": ["b"]}, "aliases must be a map of strings"),
    "channels_last": ("conv.weight", "channels_last must be a list of strings"),
    "unsaved_buffers": ({"scale": "int64"}, r"unsaved_buffers must be a map of dtypes \(float64, float32"),
    "plan": ("plan.yaml", "plan must be an object or null"),
    "figures": ([], "figures must be an object"),
    "provenance": ({"model": 1}, "provenance must be a map of strings"),
    "storage": ("zip", "storage must be one of plain, entropy, "),
    "coded": ({"fc.0.weight": {"dtype": "float32"}}, "coded must be a map of dtype, shape, planes and int8|coded"),
    "folds": ({"norm": None}, "folds must be a map of strings"),
    "unfused": ({"attention": "qkv"}, "unfused must be a map of lists of strings"),
    "plain_bytes": (-1, "plain_bytes must be a positive integer or null"),
    "largest_error": (math.inf, "largest_error must be a number or null|not valid JSON"),
    "seen": ({"calibration": 3}, "seen must be a map of strings"),
}
WRONG_CHAIN: dict[str, tuple[Any, str]] = {
    "names": ([""], "names must be a list of module names"),
    "kind": ("gru", "kind must be one of linear, "),
    "weight_shape": ([8], "weight_shape must be a list of positive integers"),
    "format": (None, "format must be a string"),
    "ranks": ([True], "ranks must be a list of integers from 0"),
    "bias": (1, "bias must be true or false"),
    "dtype": ("int8", "dtype must be one of float64"),
    "role": ("head", "role must be one of layer, table, tied, joint"),
    "site": (1, "site must be a string"),
}


def text_of(plain: dict[str, Any]) -> str:
    """A manifest's text, its checksum that of what it says."""
    plain = {name: value for name, value in plain.items() if name != "checksum"}
    return json.dumps({**plain, "checksum": digest(plain)})


def plain() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(MANIFEST.to_json())
    return content


def test_there_and_back() -> None:
    text = MANIFEST.to_json()
    assert Manifest.from_json(text) == MANIFEST
    assert Manifest.from_json(text_of(plain())) == MANIFEST
    assert next(iter(plain())) == "format_version"


def test_every_field_is_tried() -> None:
    assert WRONG.keys() == {field.name for field in fields(Manifest)}
    assert WRONG_CHAIN.keys() == {field.name for field in fields(StoredChain)}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value(name: str) -> None:
    value, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        Manifest.from_json(text_of({**plain(), name: value}))


@pytest.mark.parametrize("name", [name for name in WRONG if name != "format_version"])
def test_a_missing_field(name: str) -> None:
    content = plain()
    del content[name]
    with pytest.raises(ValueError, match=f"the field '{name}' is missing"):
        Manifest.from_json(text_of(content))


@pytest.mark.parametrize("name", WRONG_CHAIN)
def test_a_wrong_value_of_a_layer(name: str) -> None:
    value, message = WRONG_CHAIN[name]
    content = plain()
    content["structure"].append({**content["structure"][0], name: value})
    with pytest.raises(ValueError, match=rf"structure\[1\].*: {message}"):
        Manifest.from_json(text_of(content))
    del content["structure"][1][name]
    with pytest.raises(ValueError, match=rf"structure\[1\].*: the field '{name}' is missing"):
        Manifest.from_json(text_of(content))


def test_unknown_fields() -> None:
    with pytest.raises(ValueError, match="unknown field 'code'; the fields are format_version, structure"):
        Manifest.from_json(text_of({**plain(), "code": "import os"}))
    content = plain()
    content["structure"][0]["code"] = "import os"
    with pytest.raises(ValueError, match=r"structure\[0\] \(site 'fc'\): unknown field 'code'; the fields are names"):
        Manifest.from_json(text_of(content))


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, -1, "4", True, None])
def test_versions_that_cannot_be_read(version: Any) -> None:
    with pytest.raises(ValueError, match=f"format_version is .*, this rankwise reads up to {FORMAT_VERSION}; "):
        Manifest.from_json(text_of({**plain(), "format_version": version}))


def test_what_earlier_versions_did_not_say() -> None:
    content = plain()
    del content["checksum"], content["unfused"]
    third = Manifest.from_json(json.dumps({**content, "format_version": 3}))
    assert third.unfused == {}
    del content["seen"]
    second = Manifest.from_json(json.dumps({**content, "format_version": 2}))
    assert (second.seen, second.folds, second.plain_bytes) == ({}, {"norm": "conv"}, 400)
    for name in ("storage", "coded", "folds", "plain_bytes", "largest_error"):
        del content[name]
    first = Manifest.from_json(json.dumps({**content, "format_version": 1}))
    assert (first.storage, first.coded, first.folds, first.plain_bytes) == ("plain", {}, {}, None)
    assert first.structure == (CHAIN,)


def test_a_checksum_that_is_not_of_its_content() -> None:
    for checksum in (None, "", digest({})):
        with pytest.raises(ValueError, match="its content does not match its checksum; it is cut off or damaged"):
            Manifest.from_json(json.dumps({**plain(), "checksum": checksum}))


@pytest.mark.parametrize("figure", [math.nan, -math.inf, {1}], ids=str)
def test_figures_that_json_cannot_hold(figure: Any) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="figures and plan must be numbers, strings, lists and dictionaries"):
        replace(MANIFEST, figures={"a": figure}).to_json()


def test_a_fingerprint_is_of_what_lies_outside_the_layers_and_of_the_layers() -> None:
    shapes = {"fc.0.weight": [2, 6], "fc.1.weight": [8, 2], "fcs.weight": [3], "norm.bias": [8]}
    lines = outline(shapes, {"fc": CHAIN.dense})
    assert lines == {"fc": "linear [8, 6]", "fcs.weight": "[3]", "norm.bias": "[8]"}
    assert list(lines) == sorted(lines)
    assert fingerprint(lines) == fingerprint(dict(lines)) != fingerprint({**lines, "fc": "linear [8, 7]"})


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_a_number_that_no_float_holds(number: int) -> None:
    with pytest.raises(ValueError, match="largest_error must be a number or null"):
        Manifest.from_json(text_of({**plain(), "largest_error": number}))
